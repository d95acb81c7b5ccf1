"""Makes ``twistd revproxy`` known."""

from twisted.application.service import ServiceMaker

revproxy = ServiceMaker(
    "revproxy", "twistedproxy.tap", "A reverse proxy for TCP and HTTP whose weights, states and servers change live.", "revproxy"
)
