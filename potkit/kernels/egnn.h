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

// u of a block of edges; ``each(b, row)`` is called with each of its rows while that is in the
// cache. u is [size, F], or one row only that all are written to (not where R > 1).
template <typename Each>
inline void first(const Inputs& in, int64_t start, int64_t size, float* u, bool one_row,
                  Each each) {
  const int64_t width = in.width, radial = in.radial;
  const float* edge = in.edge + start * radial;
  if (radial > 1) {
    Tensor u_view = over(u, size, width);
    at::mm_out(u_view, over(const_cast<float*>(edge), size, radial),
               over(const_cast<float*>(in.w_d), radial, width));
  }
  for (int64_t b = 0; b < size; ++b) {
    const float* __restrict__ p = in.p + in.receiver[start + b] * width;
    const float* __restrict__ q = in.q + in.sender[start + b] * width;
    float* __restrict__ row = u + (one_row ? 0 : b * width);
    if (radial > 1) {
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) row[k] += p[k] + q[k];
    } else {
      const float* __restrict__ w = in.w_d;
      const float d = edge[b];
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) row[k] = p[k] + q[k] + d * w[k];
    }
    each(b, row);
  }
}

// d_edge = du W_d of a block of edges
inline void to_edge(const Inputs& in, int64_t start, int64_t size, float* du, float* d_edge) {
  const int64_t width = in.width, radial = in.radial;
  if (radial > 1) {
    Tensor out = over(d_edge + start * radial, size, radial);
    at::mm_out(out, over(du, size, width), over(const_cast<float*>(in.w_d), radial, width).t());
    return;
  }
  const float* __restrict__ w = in.w_d;
  for (int64_t b = 0; b < size; ++b) {
    const float* __restrict__ row = du + b * width;
    float out = 0.0f;
#pragma omp simd reduction(+ : out)
    for (int64_t k = 0; k < width; ++k) out += row[k] * w[k];
    d_edge[start + b] = out;
  }
}

// dw_d [R, F] += Σ value ⊗ du over a block of edges; values [size, R]
inline void to_radial(const float* values, const float* du, int64_t size, int64_t radial,
                      int64_t width, Tensor& dw_d) {
  if (radial > 1) {
    dw_d.addmm_(over(const_cast<float*>(values), size, radial).t(),
                over(const_cast<float*>(du), size, width));
    return;
  }
  float* __restrict__ out = dw_d.data_ptr<float>();
  for (int64_t b = 0; b < size; ++b) {
    const float* __restrict__ row = du + b * width;
    const float value = values[b];
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) out[k] += value * row[k];
  }
}

}  // namespace potkit::egnn
