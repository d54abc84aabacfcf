/* NumPy arrays that are given as Python objects, by id(): of CPython, the object's address.
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

static void *pyq_array_data(uintptr_t array) { return PyArray_DATA((PyArrayObject *)array); }

static int32_t pyq_run_arrays(const pyq_call *call, uintptr_t x, int64_t images, uintptr_t residual, uintptr_t out) {
    return pyq_run(call, pyq_array_data(x), images, residual ? pyq_array_data(residual) : NULL, pyq_array_data(out));
}

static int32_t pyq_run_dynamic_arrays(const pyq_dynamic *dynamic, uintptr_t x, int64_t rows, uintptr_t offset,
                                      uintptr_t out) {
    const float *addend = offset ? pyq_array_data(offset) : NULL;
    return pyq_run_dynamic(dynamic, pyq_array_data(x), rows, addend, pyq_array_data(out));
}

#endif
