// What this machine can do at most, measured: the benchmarks' roofline.
#pragma once

#include <cstdint>
#include <string>

namespace lstmkern {
namespace cpu {

// Work per second of a team of `threads` for about `seconds`: floating point operations of rate fp32, fp64, bf16 or
// amx (bf16 by instructions of its own, and by tiles), or with rate read the bytes that the threads read, over and
// over, each from its own part of `bytes`. 0 where the instruction set or the machine has no such rate.
double peak(const std::string& capability, const std::string& rate, int threads, int64_t bytes, double seconds);

}  // namespace cpu
}  // namespace lstmkern
