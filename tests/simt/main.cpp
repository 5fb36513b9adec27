// A program that runs the kernels on a few unusual shapes in all types, for AddressSanitizer and similar tools, which
// also check reads. The values are checked by other tests.
#include <cstdio>
#include <vector>

#include "../../csrc/cuda/dispatch.h"
#include "arguments.h"
#include "simt.h"

namespace {

struct Shape {
  int64_t cell, T, N, I, H, P, D;
  bool batch_first, lengths, resets, bias;
};

}  // namespace

int main() {
  using namespace lstmkern;
  const Shape shapes[] = {
      {2, 4, 3, 3, 7, 3, 2, false, true, true, true},  {2, 3, 2, 4, 9, 9, 1, true, false, false, false},
      {3, 4, 3, 5, 17, 17, 2, true, true, true, true}, {3, 2, 2, 3, 33, 33, 1, false, false, true, true},
      {0, 3, 2, 3, 5, 5, 2, false, true, false, true}, {1, 3, 5, 3, 1, 1, 1, false, false, true, true},
  };
  char message[4096];
  int runs = 0;
  for (const Shape& s : shapes)
    for (int64_t dtype = 0; dtype < 4; ++dtype) {
      const size_t size = dtype == 0 ? 4 : dtype == 1 ? 8 : 2;
      std::vector<std::vector<char>> memory;
      unsigned random = 1;
      // Values near one, in any type: 0.5 to 1.
      auto values = [&](int64_t count) -> void* {
        memory.emplace_back(count * size);
        for (int64_t i = 0; i < count; ++i) {
          random = random * 1664525u + 1013904223u;
          const float v = 0.5f + (random >> 9) / 16777216.0f;
          const double wide = v;
          const cuda::bf16 b = [&] {
            cuda::bf16 x;
            cuda::narrow(v, x);
            return x;
          }();
          const cuda::f16 h = [&] {
            cuda::f16 x;
            cuda::narrow(v, x);
            return x;
          }();
          const void* from = dtype == 0   ? (const void*)&v
                             : dtype == 1 ? (const void*)&wide
                             : dtype == 2 ? (const void*)&b
                                          : &h;
          std::memcpy(memory.back().data() + i * size, from, size);
        }
        return memory.back().data();
      };
      const int64_t G = s.cell == 2 ? 4 : s.cell == 3 ? 3 : 1, R = s.T * s.N, saved = s.cell >= 2 ? 4 : 0;
      std::vector<int64_t> lengths(s.N);
      for (int64_t j = 0; j < s.N; ++j) lengths[j] = 1 + (j * 2 + 1) % s.T;
      std::vector<char> resets(R);
      for (int64_t i = 0; i < R; ++i) resets[i] = i % 3 == 1;
      Arguments a{};
      a.cell = s.cell, a.dtype = dtype, a.T = s.T, a.N = s.N, a.I = s.I, a.H = s.H, a.P = s.P, a.D = s.D;
      a.batch_first = s.batch_first, a.rows = R, a.seed = dtype + 1, a.grad_output_columns = s.D * s.P;
      a.lengths = s.lengths ? lengths.data() : nullptr;
      a.resets = s.resets ? resets.data() : nullptr;
      a.input = values(R * s.I), a.h0 = values(s.D * s.N * s.P);
      a.output = values(R * s.D * s.P), a.h_n = values(s.D * s.N * s.P);
      a.grad_output = values(R * s.D * s.P), a.grad_h_n = values(s.D * s.N * s.P);
      a.grad_input = values(R * s.I), a.grad_h0 = values(s.D * s.N * s.P);
      a.gates = saved ? values(s.D * R * saved * padded(s.H)) : nullptr;
      if (s.cell == 2) {
        a.c0 = values(s.D * s.N * s.H), a.c_n = values(s.D * s.N * s.H), a.cells = values(R * s.D * s.H);
        a.grad_c_n = values(s.D * s.N * s.H), a.grad_cells = values(R * s.D * s.H), a.grad_c0 = values(s.D * s.N * s.H);
      }
      const int64_t sizes[5] = {G * s.H * s.I, G * s.H * s.P, G * s.H, G * s.H, s.P * s.H};
      for (int64_t d = 0; d < s.D; ++d)
        for (int i = 0; i < 5; ++i) {
          if ((i == 2 || i == 3) && !s.bias) continue;
          if (i == 4 && s.P == s.H) continue;
          a.weights[d][i] = values(sizes[i]), a.grad_weights[d][i] = values(sizes[i]);
        }
      const bool resident = s.cell >= 2 && s.P == s.H && dtype != 1;
      for (a.tier = 0; a.tier < (resident ? 3 : 1); ++a.tier)
        for (int backward = 0; backward < 2; ++backward, ++runs)
          if (simt_layer(&a, backward, message, sizeof message)) {
            std::printf("%s\n", message);
            return 1;
          }
    }
  for (const char* name : {"block_sum", "warp", "mma_bf16", "async", "relay", "cluster_4"})
    for (uint64_t seed = 0; seed < 3; ++seed, ++runs)
      if (simt_selftest(name, seed, message, sizeof message)) {
        std::printf("%s: %s\n", name, message);
        return 1;
      }
  std::printf("%d runs\n", runs);
}
