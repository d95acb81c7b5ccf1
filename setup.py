"""Builds the native head codec as an optional extension; everything else is declared in setup.cfg."""

import os

from setuptools import Extension, setup

SOURCE = "twistedproxy/http/_head.pyx"


def extensions():
    """The Cython codec; none when the environment says so, so that the pure twin can be installed on purpose."""
    if os.environ.get("TWISTEDPROXY_PURE", "") not in ("", "0") or not os.path.exists(SOURCE):
        return []
    try:
        from Cython.Build import cythonize  # noqa: PLC0415 - may be absent
    except ImportError:
        return []
    # optional: where it cannot be compiled, the installation goes on and the pure twin runs.
    return cythonize([Extension("twistedproxy.http._head", [SOURCE], optional=True, extra_compile_args=["-O3"])])


setup(ext_modules=extensions())
