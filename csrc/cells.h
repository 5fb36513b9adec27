// The maths of one time step of each recurrent cell and its derivative, written once for every device: cells/.
//
// Templates over the value type V: float, double, a SIMD register, a CUDA scalar. A value type brings its operators
// and two functions, sigmoid(V) and tanh(V). They are found by name, so these files are included inside the namespace
// that has them, after them (hence no include guards). No loops, no pointers, no torch.
//
// Notation as in torch.nn: i f g o (LSTM), r z n (GRU). A name with d in front is the derivative of the loss with
// respect to that value. For a gate it is the derivative with respect to the value before the gate's nonlinearity.
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
