"""Globals that no checkpoint needs: a pickle that names one is refused. Part of the program `inert_unpickler`."""

from __future__ import annotations

# They run, reach or read things. Some are Python 2's modules, `nt` is Windows'.
_MODULES = frozenset(
    """
    os posix nt posixpath ntpath subprocess commands popen2 _posixsubprocess sys importlib imp runpy pkgutil zipimport
    socket _socket ssl asyncio http urllib urllib2 httplib ftplib smtplib telnetlib xmlrpc webbrowser requests
    shutil tempfile glob fileinput io _io pty tty code codeop pdb bdb timeit cProfile profile trace doctest
    ctypes _ctypes cffi multiprocessing threading _thread thread signal resource atexit gc inspect
    marshal pickle _pickle cPickle dill cloudpickle shelve operator _operator idlelib pip setuptools distutils
    ensurepip venv platform pydoc
    """.split()  # noqa: SIM905 - a list of 80 names in quotes is no better to read
)
_BUILTINS = frozenset(
    """
    eval exec execfile compile __import__ open file input raw_input breakpoint globals locals vars
    setattr delattr apply memoryview
    """.split()  # noqa: SIM905
)
_NAMES = frozenset(
    """
    torch.load torch.serialization.load torch.hub.load torch.jit.load torch.package.PackageImporter numpy.load
    numpy.f2py.crackfortran.myeval numpy.testing._private.utils.runstring torch.utils.collect_env.run
    types.CodeType types.FunctionType
    """.split()  # noqa: SIM905
)


class Refused(Exception):
    """The pickle holds an object that no checkpoint needs, or a tensor that torch would not write."""


def is_refused(module: str, name: str) -> bool:
    root = module.split(".")[0]
    parts = name.split(".")
    return bool(
        root in _MODULES
        or f"{module}.{name}" in _NAMES
        or (root in ("builtins", "__builtins__") and _BUILTINS.intersection(parts))
        # A dotted name walks from one object to the next, and every object leads to `builtins`.
        or (len(parts) > 1 and any(part.startswith("__") or part in _MODULES for part in parts))
    )
