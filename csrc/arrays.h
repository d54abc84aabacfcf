/* pyq_run on NumPy arrays that are given as Python objects, by id(): of CPython, the object's address.
 *
 * To ask an array for its address by Python's buffer protocol takes a fifth of a microsecond, as long as a product of
 * 32x32 matrices; its header has it, at a place that is part of NumPy's ABI. Part of the extension module only: the
 * kernels know nothing of Python. The caller vouches for the objects being arrays, and holds them.
 */
#ifndef PYQ_ARRAYS_H
#define PYQ_ARRAYS_H

#include "pyq.h"

#if defined(PYPY_VERSION) || defined(GRAALVM_PYTHON)
#error "id() is the address of an object in CPython alone; pyq installs without its C kernels"
#endif

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/ndarraytypes.h>

static int32_t pyq_run_arrays(const pyq_call *call, uintptr_t x, int64_t images, uintptr_t residual, uintptr_t out) {
    const uint8_t *addend = residual ? PyArray_DATA((PyArrayObject *)residual) : NULL;
    return pyq_run(call, PyArray_DATA((PyArrayObject *)x), images, addend, PyArray_DATA((PyArrayObject *)out));
}

#endif
