// Matrix multiplication in the resident tiers: tensor cores for 16-bit types, FMA for fp32. The weights are stored as
// fragments, which are multiplied with the state.
//
// A *fragment* is 16 bytes per lane of a [kUnits, depth] matrix. A *step of depth* is what a warp multiplies at once:
// kDepth columns of the matrix, kPieces fragments for each product.
//   16-bit types   two mma.m16n8k16 with 16 units of one gate as M and 8 sequences as N; one ldmatrix loads the part of
//                  the state that both need
//   fp32           one unit per lane, with FMA: exact fp32, like torch's recurrent layers without TF32. Three TF32
//                  products would need every weight split in two. Storing both parts doubles the registers and shared
//                  memory, which are already scarce; splitting at every step costs too much for 8 sequences.
#pragma once

#include "steps.h"

namespace lstmkern {
namespace cuda {

// kSums: sums per lane for 8 sequences. kClocks: about how many clocks a multiprocessor needs for a step of depth and 8
// sequences. kFromShared: how many times as long a step of depth takes if its fragments are in shared memory.
template <class S>
struct Tile {
  static constexpr int kUnits = 16, kDepth = 32, kPieces = 2, kSums = 4, kClocks = 4, kFromShared = 2;

  template <class Element>
  static LSTMKERN_DEVICE void load(unsigned (&a)[kPieces][4], int unit, int k, const Element& element) {
    const int group = static_cast<int>(lane_index()) / 4, member = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = unit + group + r % 2 * 8, column = k + piece * 16 + member * 2 + r / 2 * 8;
        a[piece][r] = element(row, column).bits | static_cast<unsigned>(element(row, column + 1).bits) << 16;
      }
  }

  // The address in the state [sequences, stride] that a lane passes to multiply().
  static LSTMKERN_DEVICE const S* operand(const S* state, int stride) {
    const int lane = static_cast<int>(lane_index());
    return state + lane % 8 * stride + lane / 8 * 8;
  }

  // Adds the products of a step; `from` points to the step's columns. With two chains of sums, the pieces of a step go
  // to different chains, because a tensor core must finish a sum before it can add to it again.
  template <int CHAINS, int M, int TILES>
  static LSTMKERN_DEVICE void multiply(float (&sums)[CHAINS][M][TILES][kSums], const unsigned (&a)[M][kPieces][4],
                                       const S* from, int stride) {
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      unsigned b[4];
      load_matrices(b, from + t * 8 * stride);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const unsigned both[2] = {b[2 * piece], b[2 * piece + 1]};
#pragma unroll
        for (int m = 0; m < M; ++m) mma_16816(sums[piece % CHAINS][m][t], a[m][piece], both, S{});
      }
    }
  }

  // Calls f(unit, sequence, tile, index of the sum) for each sum of this lane.
  template <int TILES, class F>
  static LSTMKERN_DEVICE void for_each_sum(const F& f) {
    const int group = static_cast<int>(lane_index()) / 4, member = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int i = 0; i < kSums; ++i) f(group + i / 2 * 8, t * 8 + member * 2 + i % 2, t, i);
  }
};

template <>
struct Tile<float> {
  static constexpr int kUnits = 32, kDepth = 4, kPieces = 1, kSums = 8, kClocks = 8, kFromShared = 1;

  template <class Element>
  static LSTMKERN_DEVICE void load(unsigned (&a)[kPieces][4], int unit, int k, const Element& element) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float value = element(unit + static_cast<int>(lane_index()), k + r);
      memcpy(&a[0][r], &value, 4);
    }
  }

  static LSTMKERN_DEVICE const float* operand(const float* state, int) { return state; }

  template <int CHAINS, int M, int TILES>
  static LSTMKERN_DEVICE void multiply(float (&sums)[CHAINS][M][TILES][kSums], const unsigned (&a)[M][kPieces][4],
                                       const float* from, int stride) {
#pragma unroll
    for (int n = 0; n < TILES * 8; ++n) {
      const Bytes16 four = load16(from + n * stride);  // the same for all lanes
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float value, weight;
        memcpy(&value, &four.word[r], 4);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          memcpy(&weight, &a[m][0][r], 4);
          sums[0][m][n / 8][n % 8] += weight * value;
        }
      }
    }
  }

  template <int TILES, class F>
  static LSTMKERN_DEVICE void for_each_sum(const F& f) {
#pragma unroll
    for (int n = 0; n < TILES * 8; ++n) f(static_cast<int>(lane_index()), n, n / 8, n % 8);
  }
};

// Chains of sums: two if a step would otherwise add to the same sums twice in a row.
template <class S, int M, int TILES>
constexpr int kChains = sizeof(S) == 2 && M * TILES == 1 ? 2 : 1;

// --- packing new states ---

// Collects 16 bytes from neighbouring lanes, one value from each; all of these lanes get the 16 bytes. All lanes of the
// warp must call it.
LSTMKERN_DEVICE Bytes16 gather16(float value, float) {
  unsigned v;
  memcpy(&v, &value, 4);
  const unsigned lane = lane_index(), w = shuffle_xor(v, 1);
  const unsigned a = lane & 1 ? w : v, b = lane & 1 ? v : w;
  const unsigned c = shuffle_xor(a, 2), d = shuffle_xor(b, 2);
  return lane & 2 ? Bytes16{{c, d, a, b}} : Bytes16{{a, b, c, d}};
}
template <class S>
LSTMKERN_DEVICE Bytes16 gather16(float value, S) {
  const unsigned lane = lane_index();
  const float other = shuffle_xor(value, 1);
  const unsigned pair = narrow_two(lane & 1 ? other : value, lane & 1 ? value : other, S{});
  const unsigned next = shuffle_xor(pair, 2);
  const unsigned a = lane & 2 ? next : pair, b = lane & 2 ? pair : next;
  const unsigned c = shuffle_xor(a, 4), d = shuffle_xor(b, 4);
  return lane & 4 ? Bytes16{{c, d, a, b}} : Bytes16{{a, b, c, d}};
}

}  // namespace cuda
}  // namespace lstmkern
