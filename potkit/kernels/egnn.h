// What the two files of EGNN's kernels share: their inputs, and the first step on an edge.
#pragma once

#include "common.h"

namespace potkit::egnn {

// edges; × 256 channels × 4 bytes is 256 kB an array, of which a thread has six in use
constexpr int64_t BLOCK = 256;

// The memory of what may be missing; null where it is.
template <typename T>
inline const T* data_of(const std::optional<Tensor>& x) {
  return x ? x->const_data_ptr<T>() : nullptr;
}

struct Inputs {
  // w_d is transposed: [R, F]; envelope, w_g: null where there is none
  const float *p, *q, *edge, *envelope, *w_d, *w_g, *w_x;
  float b_g, b_x;
  const int64_t *sender, *receiver;
  int64_t n_atoms, n_edges, width, radial;
};

inline Inputs gather(const Tensor& p, const Tensor& q, const Tensor& edge,
                     const std::optional<Tensor>& envelope, const Tensor& w_d_t,
                     const std::optional<Tensor>& w_g, const std::optional<Tensor>& b_g,
                     const Tensor& w_x, const Tensor& b_x, const Tensor& sender,
                     const Tensor& receiver) {
  return {p.const_data_ptr<float>(),
          q.const_data_ptr<float>(),
          edge.const_data_ptr<float>(),
          data_of<float>(envelope),
          w_d_t.const_data_ptr<float>(),
          data_of<float>(w_g),
          w_x.const_data_ptr<float>(),
          b_g ? b_g->item<float>() : 0.0f,
          b_x.item<float>(),
          sender.const_data_ptr<int64_t>(),
          receiver.const_data_ptr<int64_t>(),
          p.size(0),
          sender.size(0),
          p.size(1),
          edge.size(1)};
}

// What each thread sums by itself: weights' gradients, and those of q for the senders it meets.
struct Sums {
  Tensor dw_d, dw2, db2, dw_g, dw_c, db_c, dw_x, dq;
  float db_g = 0.0f;
  Span senders;

  Sums() = default;
  // zeros, for the edges from begin to end
  Sums(const Inputs& in, int64_t begin, int64_t end, const at::TensorOptions& like) {
    const int64_t f = in.width;
    senders = span(in.sender, begin, end);
    dw_d = at::zeros({in.radial, f}, like);
    dw2 = at::zeros({f, f}, like), db2 = at::zeros({f}, like), dw_g = at::zeros({1, f}, like);
    dw_c = at::zeros({f, f}, like), db_c = at::zeros({f}, like), dw_x = at::zeros({1, f}, like);
    dq = at::zeros({senders.past - senders.first, f}, like);
  }

  // dq of this thread, by the numbers of atoms
  float* rows_of_q(int64_t width) { return dq.data_ptr<float>() - senders.first * width; }
};

// The first of ``parts`` plus the others; dq of all of them goes into ``dq`` [N, F].
inline Sums& together(std::vector<Sums>& parts, Tensor& dq) {
  at::AutoDispatchBelowADInplaceOrView guard;
  Sums& whole = parts[0];
  for (size_t k = 0; k < parts.size(); ++k) {
    Sums& part = parts[k];
    dq.slice(0, part.senders.first, part.senders.past).add_(part.dq);
    if (k == 0) continue;
    whole.dw_d.add_(part.dw_d), whole.dw2.add_(part.dw2), whole.db2.add_(part.db2);
    whole.dw_g.add_(part.dw_g), whole.dw_c.add_(part.dw_c), whole.db_c.add_(part.db_c);
    whole.dw_x.add_(part.dw_x);
    whole.db_g += part.db_g;
  }
  return whole;
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
