// Measures the peak rates of this machine, for the benchmarks' roofline.
#pragma once

#include <cstdint>
#include <string>

namespace lstmkern {
namespace cpu {

// Work per second of `threads` threads, measured for about `seconds`. For the rates fp32, fp64, bf16 (AVX-512 BF16
// instructions) and amx (bf16 on tiles) it is floating point operations. For the rate read it is bytes: each thread
// reads its part of `bytes` repeatedly. 0 if the instruction set or the machine does not have the rate.
double peak(const std::string& capability, const std::string& rate, int threads, int64_t bytes, double seconds);

}  // namespace cpu
}  // namespace lstmkern
