// One recurrent layer in one or two directions, without torch: what a back end reads and must write.
//
// One layout describes every kind of input. Sequences are sorted by decreasing length. Step t has the sequences
// j < active[t], so active[t] never increases with t. Element (t, j, column) of a tensor described by a View is at
//     data + view.step * place[t] + view.lane * order[j] + column          (strides in elements)
//   a dense or batch-first batch:  active[t] = N, place[t] = t, order[j] = j, strides of the tensor
//   a PackedSequence:              place[t] = first row of step t, order[j] = j, step = lane = row length
//   a padded batch with lengths:   place[t] = t, order[j] = index in the batch of the j-th longest sequence
// Nothing is copied to change a layout, and no loop depends on which of the three it is. A sequence without steps
// (j >= active[0], or a length of 0) keeps its state: h_n is h0 and c_n is c0. The same holds for the gradients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lstmkern {

enum class Cell : int { rnn_tanh, rnn_relu, lstm, gru };
enum class DType : int { f32, f64, bf16, f16 };

// Gates in the weights: rows of w_ih and w_hh are gates * H.
constexpr int gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
// Values saved for backward per unit and step: i f g o, or r z n n_h (see cells.h), or none (RNN: the output is
// enough).
constexpr int saved_of(Cell cell) { return cell == Cell::lstm || cell == Cell::gru ? 4 : 0; }
// The LSTM has a second state, c.
constexpr bool has_cell_state(Cell cell) { return cell == Cell::lstm; }
// GRU computes its candidate n from separate input and state parts (n_x + r * n_h), each with a bias and a gradient.
constexpr bool splits_candidate(Cell cell) { return cell == Cell::gru; }
// Saved values are stored as [slot][padded H], with H padded to a multiple of this, so that kernels can use whole
// registers.
constexpr int64_t kPadding = 16;
constexpr int64_t padded(int64_t units) { return (units + kPadding - 1) / kPadding * kPadding; }

struct View {
  void* data = nullptr;  // null: absent
  int64_t step = 0;      // elements from one place to the next
  int64_t lane = 0;      // elements from one sequence to the next
};

// One direction's parameters, contiguous, in nn.LSTM's layout.
struct Weights {
  const void* w_ih;  // [G*H, I]
  const void* w_hh;  // [G*H, P]
  const void* b_ih;  // [G*H] or null
  const void* b_hh;  // [G*H] or null
  const void* w_hr;  // [P, H] or null (no projection: P == H)
};

struct WeightGrads {  // the same shapes; each is written once; null: not needed
  void* w_ih;
  void* w_hh;
  void* b_ih;
  void* b_hh;
  void* w_hr;
};

struct Layer {
  Cell cell;
  DType dtype;
  int64_t T, N, I, H, P;  // steps, sequences, input size, hidden size, projected size (H without projection)
  int D;                  // directions; direction 1 runs from the last step to the first
  const int64_t* active;  // [T] sequences in step t
  const int64_t* place;   // [T]
  const int64_t* order;   // [N] place in the batch of sequence j; also its row in h0, c0, h_n, c_n
  // CUDA only, [N] on the device or null: sequence j ends after lengths[j] steps, clamped to 0..T. The host does not
  // read them (that would need a synchronisation). So active[t] is N and order[j] is j, and the kernels mask the steps
  // past the end.
  const int64_t* lengths;
  View input;   // I columns
  View resets;  // bool, 1 column: the state is zeroed before this step; may be absent
  Weights weights[2];
  const void* h0;           // [D, N, P]; null: zeros (CPU only), as for c0
  const void* c0;           // [D, N, H], LSTM only
  View output;              // D*P columns, direction d at column d*P; zero past a sequence's end (filled by the caller)
  View cells;               // D*H columns, every step's c; may be absent
  View gates;               // saved_of(cell) * padded(H) columns; may be absent
  int64_t gates_direction;  // elements from direction 0's gates to direction 1's
  int threads;
};

struct Forward : Layer {
  void* h_n;  // [D, N, P]
  void* c_n;  // [D, N, H], LSTM only
};

struct Backward : Layer {  // output, cells and gates are the forward's
  View grad_output;        // D*P columns; may be absent, as may the next three
  View grad_cells;         // D*H columns
  const void* grad_h_n;    // [D, N, P]
  const void* grad_c_n;    // [D, N, H]
  View grad_input;         // I columns; may be absent; zero past a sequence's end (filled by the caller)
  void* grad_h0;           // [D, N, P]; may be absent
  void* grad_c0;           // [D, N, H]; may be absent
  WeightGrads grad_weights[2];
  bool want_weights;
};

namespace cpu {
void forward(const Forward& layer);
void backward(const Backward& layer);
// The instruction set in use: "baseline", "avx2" or "avx512", for bf16 also "avx512_bf16" or "amx".
const char* capability(DType dtype);
// The instruction sets that this build has kernels for, best first.
std::vector<const char*> capabilities();
}  // namespace cpu

}  // namespace lstmkern
