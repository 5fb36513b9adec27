// What every unit of the CPU kernels includes before its target (see avx2/target.h and its siblings).
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) || defined(__i386__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns about its own _mm512_undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "memory.h"
#include "team.h"
#include "variants.h"
