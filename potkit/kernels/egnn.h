// What the two files of EGNN's kernels share: their inputs, and the first step on an edge.
#pragma once

#include "common.h"

namespace potkit::egnn {

constexpr int64_t BLOCK = 256;  // edges; × 256 channels × 4 bytes is 256 kB an array, of which a thread has six in use

// The memory of what may be missing; null where it is.
template <typename T>
inline const T* data_of(const std::optional<Tensor>& x) {
  return x ? x->const_data_ptr<T>() : nullptr;
}

struct Inputs {
  const float *p, *q, *edge, *envelope, *w_d, *w_g, *w_x;  // w_d is transposed: [R, F]; envelope, w_g: null where there is none
  float b_g, b_x;
  const int64_t *sender, *receiver;
  int64_t n_atoms, n_edges, width, radial;
};

inline Inputs gather(const Tensor& p, const Tensor& q, const Tensor& edge, const std::optional<Tensor>& envelope, const Tensor& w_d_t,
              const std::optional<Tensor>& w_g, const std::optional<Tensor>& b_g, const Tensor& w_x, const Tensor& b_x,
              const Tensor& sender, const Tensor& receiver) {
  auto data = [](const std::optional<Tensor>& x) -> const float* { return x ? x->const_data_ptr<float>() : nullptr; };
  return {p.const_data_ptr<float>(), q.const_data_ptr<float>(), edge.const_data_ptr<float>(), data(envelope),
          w_d_t.const_data_ptr<float>(), data(w_g), w_x.const_data_ptr<float>(), b_g ? b_g->item<float>() : 0.0f, b_x.item<float>(),
          sender.const_data_ptr<int64_t>(), receiver.const_data_ptr<int64_t>(), p.size(0), sender.size(0), p.size(1), edge.size(1)};
}

// u and silu(u) of an edge; u is stored only where asked for
template <bool Keep, typename T>
inline void first(const Inputs& in, int64_t e, float* __restrict__ u, T* __restrict__ s) {
  const int64_t width = in.width;
  const float* __restrict__ p = in.p + in.receiver[e] * width;
  const float* __restrict__ q = in.q + in.sender[e] * width;
  const float* __restrict__ w = in.w_d;
  const float* edge = in.edge + e * in.radial;
  if (in.radial == 1) {
    const float d = edge[0];
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      const float x = p[k] + q[k] + d * w[k];
      if constexpr (Keep) u[k] = x;
      s[k] = narrow<T>(silu(x));
    }
    return;
  }
  for (int64_t k = 0; k < width; ++k) u[k] = p[k] + q[k];
  for (int64_t r = 0; r < in.radial; ++r) {
    const float d = edge[r];
    const float* __restrict__ row = w + r * width;
    for (int64_t k = 0; k < width; ++k) u[k] += d * row[k];
  }
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) s[k] = narrow<T>(silu(u[k]));
}

}  // namespace potkit::egnn
