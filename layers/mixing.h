// The effective attention matrix of a mixer. Whatever a head keeps of the past, its result is
// linear in its values once queries, keys and gates are fixed:  o_t = sum_s M[t, s] v_s.
// M is found by feeding the operation unit values in place of v: column s of M is what a one at
// token s, and nothing elsewhere, leads to. So the matrix is exact for every mechanism, those that
// erase included, and needs no formula of any of them.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "core/tensor.h"

namespace weft::layers {

struct Mixing {
  std::string owner;      // "layers.3.mixer"
  std::string operation;  // "gated_delta", "selective_scan"
  // A scan mixes each channel by a matrix of its own: then H counts channels, and V is 1.
  bool channels = false;
  Tensor matrix;  // f64 [H, T, T]
  Tensor values;  // f64 [H, T, V], what is mixed
  Tensor result;  // f64 [H, T, V], what the operation gave
  // The largest |M v - o| over the largest |o|: rounding, where the operation is linear.
  double gap = 0;
  // f64 [H, T] or [1, T]: "kept" (the part of the state that a token keeps, e^g), "beta", "step".
  // A gate with a number for each key channel is shown by its mean over them. "state": the norm of
  // what is kept after a token.
  // f64 [4, T]: "routes", of a router's softmax part: what its choice gives to no key, a window,
  // selected blocks, all of the past.
  std::map<std::string, Tensor> gates;
};

// Runs `forward`, a forward pass over one text [1, T, D], and hands over the mixing of each mixer
// that it meets. The operations run again in f64 on the CPU. Throws Error for more than one row,
// for packed documents, for a text that goes on from a state, and where a scan's matrices would
// take more than 2 GiB.
void watch_mixings(const std::function<void()>& forward,
                   const std::function<void(const Mixing&)>& use);
// True within watch_mixings(): a mixer of many operations takes one that has a matrix instead.
bool finds_mixings();

}  // namespace weft::layers
