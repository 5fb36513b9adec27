#include "target.h"
// clang-format off: after the target
#include "../gru.inl"
