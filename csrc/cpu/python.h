// Python.h, for functions that only Python calls. What they name of it is weak: a process without an interpreter, as a
// C++ program that runs AOTInductor packages, loads this library too, and there those names stay null. A test reads the
// built library for names of Python that are not in the list (tests/repository/test_build.py).
#pragma once

#include <Python.h>

#ifdef __ELF__
#pragma weak PyArg_ParseTuple
#pragma weak PyArg_UnpackTuple
#pragma weak PyBool_FromLong
#pragma weak PyCapsule_GetPointer
#pragma weak PyErr_Clear
#pragma weak PyErr_SetString
#pragma weak PyEval_RestoreThread
#pragma weak PyEval_SaveThread
#pragma weak PyExc_RuntimeError
#pragma weak PyImport_ImportModule
#pragma weak PyList_Append
#pragma weak PyList_GetItem
#pragma weak PyList_New
#pragma weak PyList_Size
#pragma weak PyModule_Create2
#pragma weak PyObject_GetAttr
#pragma weak PyObject_GetAttrString
#pragma weak PyType_GetFlags
#pragma weak PyUnicode_InternFromString
#pragma weak Py_BuildValue
#pragma weak _Py_Dealloc
#pragma weak _Py_FalseStruct
#pragma weak _Py_NoneStruct
#pragma weak _Py_TrueStruct
#endif
