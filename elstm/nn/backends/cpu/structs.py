"""Defines the structs of call.h for ctypes; check.py needs them without torch."""

import ctypes


class ThreadPool(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("parallel", "thread", "threads")]


class Norm(ctypes.Structure):
    pointers = (
        *("gamma", "beta", "mean", "var"),
        *("batch_mean", "batch_var", "d_gamma", "d_beta"),
    )
    _fields_ = [
        *((name, ctypes.c_void_p) for name in pointers),
        ("eps", ctypes.c_double),
        ("batch_steps", ctypes.c_int64),
    ]


class CallStruct(ctypes.Structure):
    """Mirrors struct call of call.h."""

    numbers = ("steps", "rows", "inputs", "units", "batch_steps", "cell", "threads")
    given = ("batch_sizes", "x", "h_0", "c_0", "w_x", "w_h", "bias")
    norms = ("norm_x", "norm_h", "norm_c")
    results = ("output", "h_n", "c_n", "saved_zh", "saved_zx", "saved_c")
    gradients = ("d_output", "d_h_n", "d_c_n", "d_x", "d_h_0", "d_c_0", "d_w_x", "d_w_h", "d_bias")
    _fields_ = [
        *((name, ctypes.c_int64) for name in numbers),
        *((name, ctypes.c_void_p) for name in given),
        *((name, Norm) for name in norms),
        *((name, ctypes.c_void_p) for name in results),
        *((name, ctypes.c_void_p) for name in gradients),
        ("workspace", ctypes.c_void_p),
        ("pool", ThreadPool),
    ]


def prototypes(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the types of the functions of cpu.c."""
    for name in ("elstm_forward", "elstm_backward"):
        getattr(library, name).argtypes = [ctypes.POINTER(CallStruct)]
        getattr(library, name).restype = None
    library.elstm_workspace.argtypes = [ctypes.POINTER(CallStruct), ctypes.c_int64]
    for name in ("elstm_workspace", "elstm_lanes", "elstm_call_size"):
        getattr(library, name).restype = ctypes.c_int64
    return library
