// EGNN's work on edges; the formulas, names and what is kept for the backward pass are those of egnn_blocks.py.
#include "egnn.h"

namespace potkit {
namespace {

using namespace egnn;

template <typename T>
void forward_blocks(const Inputs& in, const Tensor& w2, const Tensor& b2, const Tensor& wc, const Tensor& bc, bool keep, T* a_all, T* c_all,
                    float* total, float* t, float* gate) {
  const int64_t width = in.width;
  const auto cuts = shares(in.receiver, in.n_edges, at::get_num_threads());
  at::parallel_for(0, static_cast<int64_t>(cuts.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<T> s_room(BLOCK * width), a_room(keep ? 0 : BLOCK * width), c_room(keep ? 0 : BLOCK * width);
    std::vector<float> u_room(BLOCK * width);
    for (int64_t share = begin; share < end; ++share) {
      for (int64_t start = cuts[share]; start < cuts[share + 1]; start += BLOCK) {
        const int64_t size = std::min(BLOCK, cuts[share + 1] - start);
        T* s = s_room.data();
        T* a = keep ? a_all + start * width : a_room.data();
        T* c = keep ? c_all + start * width : c_room.data();
        float* u_block = u_room.data();
        first(in, start, size, u_block, in.radial == 1, [&](int64_t b, const float* u) {
          T* __restrict__ row = s + b * width;
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) row[k] = narrow<T>(silu(u[k]));
        });
        Tensor s_view = over(s, size, width), a_view = over(a, size, width), c_view = over(c, size, width);
        at::addmm_out(a_view, b2, s_view, w2.t());
        for (int64_t b = 0; b < size; ++b) {
          const int64_t e = start + b;
          const T* __restrict__ a_row = a + b * width;
          T* __restrict__ m = s + b * width;
          float* __restrict__ sum = total + in.receiver[e] * width;
          float g = 1.0f;
          if (in.w_g) {
            const float* __restrict__ w = in.w_g;
            float logit = in.b_g;
#pragma omp simd reduction(+ : logit)
            for (int64_t k = 0; k < width; ++k) {
              const float x = silu(widen(a_row[k]));
              u_room[k] = x;
              logit += x * w[k];
            }
            g = gate[e] = sigmoid(logit);
          } else {
#pragma omp simd
            for (int64_t k = 0; k < width; ++k) u_room[k] = silu(widen(a_row[k]));
          }
          const float f = in.envelope ? in.envelope[e] : 1.0f;
          const float* __restrict__ x = u_room.data();
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            const float y = x[k] * g;
            m[k] = narrow<T>(y);
            sum[k] += f * y;
          }
        }
        at::addmm_out(c_view, bc, s_view, wc.t());
        for (int64_t b = 0; b < size; ++b) {
          const T* __restrict__ c_row = c + b * width;
          const float* __restrict__ w = in.w_x;
          float out = in.b_x;
#pragma omp simd reduction(+ : out)
          for (int64_t k = 0; k < width; ++k) out += silu(widen(c_row[k])) * w[k];
          t[start + b] = out;
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> egnn_forward(
    const Tensor& p, const Tensor& q, const Tensor& edge, const std::optional<Tensor>& envelope, const Tensor& w_d_t, const Tensor& w2,
    const Tensor& b2, const std::optional<Tensor>& w_g, const std::optional<Tensor>& b_g, const Tensor& wc, const Tensor& bc,
    const Tensor& w_x, const Tensor& b_x, const Tensor& sender, const Tensor& receiver, bool keep) {
  const Inputs in = gather(p, q, edge, envelope, w_d_t, w_g, b_g, w_x, b_x, sender, receiver);
  const int64_t rows = keep ? in.n_edges : 0;
  Tensor a = at::empty({rows, in.width}, w2.options()), c = at::empty({rows, in.width}, w2.options());
  Tensor total = at::zeros_like(p), t = at::empty({in.n_edges}, p.options()), gate = at::empty({w_g ? in.n_edges : 0, 1}, p.options());
  in_type_of(w2, "potkit::egnn_forward", [&]<typename T>() {
    forward_blocks<T>(in, w2, b2, wc, bc, keep, a.data_ptr<T>(), c.data_ptr<T>(),
                      total.data_ptr<float>(), t.data_ptr<float>(), gate.data_ptr<float>());
  });
  return {total, t, a, c, gate};
}

// What is given for the four outputs of the forward pass; d_t, d_a, d_c: null where nothing is.
template <typename T>
struct Ups {
  const float *d_total, *d_t;
  const T *d_a, *d_c;
};

template <typename T>
void backward_share(const Inputs& in, const Tensor& w2, const Tensor& wc, const T* a_all,
                    const T* c_all, const float* gate, const Ups<T>& up, int64_t begin, int64_t end,
                    Sums& sums, float* dp, float* d_edge, float* d_envelope) {
  const int64_t width = in.width;
  std::vector<float> u_room(BLOCK * width), row_room(width);
  std::vector<T> s_room(BLOCK * width), m_room(BLOCK * width), dc_room(BLOCK * width), d_room(BLOCK * width);
  float *u = u_room.data(), *row = row_room.data();
  T *s = s_room.data(), *m = m_room.data(), *dc = dc_room.data(), *d = d_room.data();
  const bool through_c = up.d_t || up.d_c;
  float *__restrict__ dw_x = sums.dw_x.data_ptr<float>(), *__restrict__ db_c = sums.db_c.data_ptr<float>();
  float *__restrict__ db2 = sums.db2.data_ptr<float>();
  float* __restrict__ dw_g = in.w_g ? sums.dw_g.data_ptr<float>() : nullptr;
  float* dq = sums.rows_of_q(width);
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, end - start);
    Tensor s_view = over(s, size, width), m_view = over(m, size, width), dc_view = over(dc, size, width), d_view = over(d, size, width);
    first(in, start, size, u, false, [&](int64_t b, float* __restrict__ u_row) {
      T* __restrict__ s_row = s + b * width;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {  // silu(u) and, in place of u, its slope
        const float x = u_row[k], slope = sigmoid(x);
        s_row[k] = narrow<T>(x * slope);
        u_row[k] = silu_slope(x, slope);
      }
    });
    // t = w_x·silu(c) + b_x
    for (int64_t b = 0; b < size; ++b) {
      const int64_t e = start + b;
      const T *__restrict__ a_row = a_all + e * width, *__restrict__ c_row = c_all + e * width;
      T *__restrict__ m_row = m + b * width, *__restrict__ dc_row = dc + b * width;
      const float* __restrict__ w_x = in.w_x;
      const float grad = up.d_t ? up.d_t[e] : 0.0f, g = in.w_g ? gate[e] : 1.0f;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) m_row[k] = narrow<T>(silu(widen(a_row[k])) * g);
      if (!through_c) continue;
      const T* __restrict__ more = up.d_c ? up.d_c + e * width : nullptr;
      auto differentiate = [&](auto added) {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float x = widen(c_row[k]), slope = sigmoid(x);
          dw_x[k] += grad * x * slope;
          const float dx = grad * w_x[k] * silu_slope(x, slope) + added(k);
          db_c[k] += dx;
          dc_row[k] = narrow<T>(dx);
        }
      };
      if (more) {
        differentiate([more](int64_t k) { return widen(more[k]); });
      } else {
        differentiate([](int64_t) { return 0.0f; });
      }
    }
    // c = W_c m + b_c and M = Σ f m, with m = silu(a) g
    if (through_c) {
      accumulate<T>(sums.dw_c, dc_view, m_view);
      at::mm_out(d_view, dc_view, wc);
    } else {
      std::fill_n(d, size * width, T(0.0f));
    }
    for (int64_t b = 0; b < size; ++b) {
      const int64_t e = start + b;
      const T* __restrict__ a_row = a_all + e * width;
      T *__restrict__ d_row = d + b * width, *__restrict__ da_row = dc + b * width;
      const T* __restrict__ m_row = m + b * width;
      const float* __restrict__ d_sum = up.d_total + in.receiver[e] * width;
      float* __restrict__ z = row;
      const float f = in.envelope ? in.envelope[e] : 1.0f, g = in.w_g ? gate[e] : 1.0f;
      if (d_envelope) {
        float out = 0.0f;
#pragma omp simd reduction(+ : out)
        for (int64_t k = 0; k < width; ++k) out += widen(m_row[k]) * d_sum[k];
        d_envelope[e] = out;
      }
      float d_logit = 0.0f;
      if (in.w_g) {
        float along = 0.0f;
#pragma omp simd reduction(+ : along)
        for (int64_t k = 0; k < width; ++k) {
          z[k] = widen(d_row[k]) + f * d_sum[k];
          along += z[k] * widen(m_row[k]);
        }
        d_logit = along * (1.0f - g);  // Σ z silu(a) · g (1 − g), and m is silu(a) g
        sums.db_g += d_logit;
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) z[k] = widen(d_row[k]) + f * d_sum[k];
      }
      const float* __restrict__ w_g = in.w_g;
      const T* __restrict__ more = up.d_a ? up.d_a + e * width : nullptr;
      auto differentiate = [&](auto added) {
        if (in.w_g) {
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            const float x = widen(a_row[k]), slope = sigmoid(x);
            dw_g[k] += d_logit * x * slope;
            const float da = (z[k] * g + d_logit * w_g[k]) * silu_slope(x, slope) + added(k);
            db2[k] += da;
            da_row[k] = narrow<T>(da);
          }
        } else {
#pragma omp simd
          for (int64_t k = 0; k < width; ++k) {
            const float x = widen(a_row[k]);
            const float da = z[k] * silu_slope(x, sigmoid(x)) + added(k);
            db2[k] += da;
            da_row[k] = narrow<T>(da);
          }
        }
      };
      if (more) {
        differentiate([more](int64_t k) { return widen(more[k]); });
      } else {
        differentiate([](int64_t) { return 0.0f; });
      }
    }
    // a = W₂ silu(u) + b₂
    accumulate<T>(sums.dw2, dc_view, s_view);
    at::mm_out(d_view, dc_view, w2);
    for (int64_t b = 0; b < size; ++b) {
      const int64_t e = start + b;
      const T* __restrict__ d_row = d + b * width;
      float* __restrict__ u_row = u + b * width;
      float *__restrict__ dp_row = dp + in.receiver[e] * width, *__restrict__ dq_row = dq + in.sender[e] * width;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float du = widen(d_row[k]) * u_row[k];
        dp_row[k] += du;
        dq_row[k] += du;
        u_row[k] = du;
      }
    }
    to_edge(in, start, size, u, d_edge);
    to_radial(in.edge + start * in.radial, u, size, in.radial, width, sums.dw_d);
  }
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor>;

Gradients egnn_backward(const Tensor& p, const Tensor& q, const Tensor& edge,
                        const std::optional<Tensor>& envelope, const Tensor& w_d_t,
                        const Tensor& w2, const std::optional<Tensor>& w_g,
                        const std::optional<Tensor>& b_g, const Tensor& wc, const Tensor& w_x,
                        const Tensor& b_x, const Tensor& sender, const Tensor& receiver,
                        const Tensor& a, const Tensor& c, const Tensor& gate,
                        const Tensor& d_total, const std::optional<Tensor>& d_t,
                        const std::optional<Tensor>& d_a, const std::optional<Tensor>& d_c,
                        bool need_envelope) {
  const Inputs in = gather(p, q, edge, envelope, w_d_t, w_g, b_g, w_x, b_x, sender, receiver);
  Tensor dp = at::zeros_like(p), dq = at::zeros_like(q), d_edge = at::empty_like(edge);
  Tensor d_envelope = at::empty({need_envelope ? in.n_edges : 0, 1}, p.options());
  const auto cuts = shares(in.receiver, in.n_edges, at::get_num_threads());
  std::vector<Sums> parts(cuts.size() - 1);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t share = begin; share < end; ++share) {
      parts[share] = Sums(in, cuts[share], cuts[share + 1], p.options());
      float* d_env = need_envelope ? d_envelope.data_ptr<float>() : nullptr;
      in_type_of(a, "potkit::egnn_backward", [&]<typename T>() {
        const Ups<T> up{d_total.const_data_ptr<float>(), data_of<float>(d_t), data_of<T>(d_a),
                        data_of<T>(d_c)};
        backward_share<T>(in, w2, wc, a.const_data_ptr<T>(), c.const_data_ptr<T>(),
                          gate.const_data_ptr<float>(), up, cuts[share], cuts[share + 1],
                          parts[share], dp.data_ptr<float>(), d_edge.data_ptr<float>(), d_env);
      });
    }
  });
  const Sums& whole = together(parts, dq);
  Tensor db_g = at::full({1}, whole.db_g, p.options());
  Tensor db_x = d_t ? d_t->sum().reshape({1}) : at::zeros({1}, p.options());
  return {dp,        dq,         d_edge,     d_envelope, whole.dw_d.t().contiguous(),
          whole.dw2, whole.db2,  whole.dw_g, db_g,       whole.dw_c,
          whole.db_c, whole.dw_x, db_x};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "egnn_forward(Tensor p, Tensor q, Tensor edge, Tensor? envelope, Tensor w_d_t, Tensor w2, "
      "Tensor b2, Tensor? w_g, Tensor? b_g, Tensor w_c, Tensor b_c, Tensor w_x, Tensor b_x, "
      "Tensor sender, Tensor receiver, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "egnn_backward(Tensor p, Tensor q, Tensor edge, Tensor? envelope, Tensor w_d_t, Tensor w2, "
      "Tensor? w_g, Tensor? b_g, Tensor w_c, Tensor w_x, Tensor b_x, Tensor sender, "
      "Tensor receiver, Tensor a, Tensor c, Tensor gate, Tensor d_total, Tensor? d_t, Tensor? d_a, "
      "Tensor? d_c, bool need_envelope) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("egnn_forward", &egnn_forward);
  library.impl("egnn_backward", &egnn_backward);
}

}  // namespace potkit
