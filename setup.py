"""Builds the native head codec as an optional extension; everything else is declared in setup.cfg."""

import os

from setuptools import Extension, setup

SOURCE = "twistedproxy/http/_head.pyx"


def extensions():
    """The Cython codec; none when the environment says so, so that the pure twin can be installed on purpose."""
    if os.environ.get("TWISTEDPROXY_PURE") or not os.path.exists(SOURCE):
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    return cythonize([Extension("twistedproxy.http._head", [SOURCE], optional=True)])


setup(ext_modules=extensions())
