// What eager.cpp adds to the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace lstmkern {
void add_eager(pybind11::module_& m);
}
