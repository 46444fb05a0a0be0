// What −∂E/∂x takes of EGNN's edges: the backward pass without gradients of weights, and the
// backward pass of that. Formulas and names are those of egnn.py.
#include "egnn.h"

namespace potkit {
namespace {

using namespace egnn;

// -- the backward pass -----------------------------------------------------------------------------
// What the two passes read beside the inputs: kept of the forward pass, and given.
template <typename T>
struct Given {
  const T *a, *c;
  const float *gate, *d_total, *d_t;  // d_t: null where nothing depends on t
};

// ∂t/∂c of an edge, times what is given for t
template <typename T>
inline void of_coordinate(const Inputs& in, const Given<T>& given, int64_t e, T* __restrict__ dc) {
  const T* __restrict__ c = given.c + e * in.width;
  const float* __restrict__ w_x = in.w_x;
  const float grad = given.d_t[e];
#pragma omp simd
  for (int64_t k = 0; k < in.width; ++k) {
    const float x = widen(c[k]);
    dc[k] = narrow<T>(grad * w_x[k] * silu_slope(x, sigmoid(x)));
  }
}

template <typename T>
void slopes_share(const Inputs& in, const Given<T>& given, const Tensor& w2, const Tensor& wc,
                  int64_t begin, int64_t end, float* z_all, T* ds_all, float* dp, float* dq,
                  float* d_edge, float* d_envelope) {
  const int64_t width = in.width;
  std::vector<float> u_room(BLOCK * width), z_room(z_all ? 0 : BLOCK * width), s_room(width);
  std::vector<T> dc_room(BLOCK * width), da_room(BLOCK * width);
  float* u = u_room.data();
  float* __restrict__ s = s_room.data();  // σ(a) of an edge
  T *dc = dc_room.data(), *da = da_room.data();
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, end - start);
    Tensor dc_view = over(dc, size, width), da_view = over(da, size, width);
    float* z_block = z_all ? z_all + start * width : z_room.data();
    // t = w_x·silu(c) + b_x and c = W_c m + b_c
    if (given.d_t) {
      for (int64_t b = 0; b < size; ++b) of_coordinate(in, given, start + b, dc + b * width);
      at::mm_out(da_view, dc_view, wc);
    }
    // M = Σ f m, with m = silu(a) g
    for (int64_t b = 0; b < size; ++b) {
      const int64_t e = start + b;
      const T* __restrict__ a = given.a + e * width;
      const float* __restrict__ up = given.d_total + in.receiver[e] * width;
      float* __restrict__ z = z_block + b * width;
      T* __restrict__ da_row = da + b * width;
      const float f = in.envelope ? in.envelope[e] : 1.0f, g = in.w_g ? given.gate[e] : 1.0f;
      if (given.d_t) {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) z[k] = widen(da_row[k]) + f * up[k];
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) z[k] = f * up[k];
      }
      float along = 0.0f, out = 0.0f;
#pragma omp simd reduction(+ : along, out)
      for (int64_t k = 0; k < width; ++k) {
        const float x = widen(a[k]), slope = sigmoid(x), v = x * slope;
        s[k] = slope;
        along += z[k] * v;
        out += up[k] * v;
      }
      if (d_envelope) d_envelope[e] = g * out;
      const float d_logit = in.w_g ? along * g * (1.0f - g) : 0.0f;
      if (in.w_g) {
        const float* __restrict__ w_g = in.w_g;
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float slope = silu_slope(widen(a[k]), s[k]);
          da_row[k] = narrow<T>((g * z[k] + d_logit * w_g[k]) * slope);
        }
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          da_row[k] = narrow<T>(z[k] * silu_slope(widen(a[k]), s[k]));
        }
      }
    }
    // a = W₂ silu(u) + b₂
    T* ds_block = ds_all ? ds_all + start * width : dc;
    Tensor ds_view = over(ds_block, size, width);
    at::mm_out(ds_view, da_view, w2);
    first(in, start, size, u, false, [&](int64_t b, float* __restrict__ row) {
      const T* __restrict__ ds = ds_block + b * width;
      float* __restrict__ dp_row = dp + in.receiver[start + b] * width;
      float* __restrict__ dq_row = dq + in.sender[start + b] * width;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        row[k] = widen(ds[k]) * silu_slope(row[k], sigmoid(row[k]));  // du
        dp_row[k] += row[k];
      }
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) dq_row[k] += row[k];
    });
    to_edge(in, start, size, u, d_edge);
  }
}

// dP, dQ, de, df; z and ds of every edge where they are to be kept, else empty. b_g is in the gate
// already: it is given because there is a gradient for it.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> egnn_slopes(
    const Tensor& p, const Tensor& q, const Tensor& edge, const std::optional<Tensor>& envelope,
    const Tensor& w_d_t, const Tensor& w2, const std::optional<Tensor>& w_g,
    const std::optional<Tensor>& b_g, const Tensor& wc, const Tensor& w_x, const Tensor& sender,
    const Tensor& receiver, const Tensor& a, const Tensor& c, const Tensor& gate,
    const Tensor& d_total, const std::optional<Tensor>& d_t, bool keep) {
  const Tensor none = at::zeros({1}, p.options());  // biases are not looked at
  const Inputs in = gather(p, q, edge, envelope, w_d_t, w_g, b_g, w_x, none, sender, receiver);
  Tensor dp = at::zeros_like(p), dq = at::zeros_like(q), d_edge = at::empty_like(edge);
  Tensor d_envelope = at::empty({envelope ? in.n_edges : 0, 1}, p.options());
  const int64_t rows = keep ? in.n_edges : 0;
  Tensor z = at::empty({rows, in.width}, p.options()), ds = at::empty({rows, in.width}, a.options());
  const auto cuts = shares(in.receiver, in.n_edges, at::get_num_threads());
  const int64_t n_shares = static_cast<int64_t>(cuts.size()) - 1;
  std::vector<Tensor> dq_of(n_shares);
  std::vector<Span> senders(n_shares);
  at::parallel_for(0, n_shares, 1, [&](int64_t first_share, int64_t past) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t share = first_share; share < past; ++share) {
      senders[share] = span(in.sender, cuts[share], cuts[share + 1]);
      dq_of[share] = at::zeros({senders[share].past - senders[share].first, in.width}, q.options());
      float* dq_data = dq_of[share].data_ptr<float>() - senders[share].first * in.width;
      float* z_data = keep ? z.data_ptr<float>() : nullptr;
      float* d_env = envelope ? d_envelope.data_ptr<float>() : nullptr;
      in_type_of(a, "potkit::egnn_slopes", [&]<typename T>() {
        const Given<T> given{a.const_data_ptr<T>(), c.const_data_ptr<T>(),
                             gate.const_data_ptr<float>(), d_total.const_data_ptr<float>(),
                             data_of<float>(d_t)};
        slopes_share<T>(in, given, w2, wc, cuts[share], cuts[share + 1], z_data,
                        keep ? ds.data_ptr<T>() : nullptr, dp.data_ptr<float>(), dq_data,
                        d_edge.data_ptr<float>(), d_env);
      });
    }
  });
  at::AutoDispatchBelowADInplaceOrView guard;
  for (int64_t share = 0; share < n_shares; ++share) {
    dq.slice(0, senders[share].first, senders[share].past).add_(dq_of[share]);
  }
  return {dp, dq, d_edge, d_envelope, z, ds};
}

// -- the backward pass of the backward pass ---------------------------------------------------------
// What is given for the four results; f: null where there is no envelope or nothing is given.
struct Ups {
  const float *p, *q, *edge, *f;
};

// What is written for each edge and, of p and d_total, for each receiver.
template <typename T>
struct Out {
  float *dp, *d_edge, *d_envelope, *d_total, *d_t;
  T *a, *c;
};

// ṡ of a block, and what comes back to u by its curvature
template <typename T>
void first_changes(const Inputs& in, const Ups& up, const T* ds_all, int64_t start, int64_t size,
                   Sums& sums, const Out<T>& out, float* u, float* dot, T* s_dot) {
  const int64_t width = in.width;
  float* dq = sums.rows_of_q(width);
  Inputs rates = in;  // u̇ = Ṗ_i + Q̇_j + W_d ė
  rates.p = up.p, rates.q = up.q, rates.edge = up.edge;
  first(rates, start, size, dot, false, [](int64_t, float*) {});
  first(in, start, size, u, false, [&](int64_t b, float* __restrict__ row) {
    const T* __restrict__ ds = ds_all + (start + b) * width;
    T* __restrict__ s_row = s_dot + b * width;
    float* __restrict__ dot_row = dot + b * width;
    float* __restrict__ dp_row = out.dp + in.receiver[start + b] * width;
    float* __restrict__ dq_row = dq + in.sender[start + b] * width;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      const float x = row[k], s = sigmoid(x), slope = silu_slope(x, s), rate = dot_row[k];
      const float grad = widen(ds[k]);
      s_row[k] = narrow<T>(slope * rate);
      dot_row[k] = grad * slope;               // du
      row[k] = grad * silu_bend(x, s) * rate;  // ū
      dp_row[k] += row[k];
    }
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) dq_row[k] += row[k];
  });
  const int64_t radial = in.radial, at = start * radial;
  to_edge(in, start, size, u, out.d_edge);
  to_radial(up.edge + at, dot, size, radial, width, sums.dw_d);
  to_radial(in.edge + at, u, size, radial, width, sums.dw_d);
}

// From ȧ of a block: ṁ, da, and what comes back to a
template <typename T>
void second_changes(const Inputs& in, const Given<T>& given, const Ups& up, const float* z_all,
                    const T* a_dot, int64_t start, int64_t size, Sums& sums, const Out<T>& out,
                    T* m_dot, T* da) {
  const int64_t width = in.width;
  std::vector<float> v_room(width), dot_room(width), s_room(width);
  float *__restrict__ v = v_room.data(), *__restrict__ v_dot = dot_room.data();
  float* __restrict__ sigma = s_room.data();
  float* __restrict__ dw_g = in.w_g ? sums.dw_g.data_ptr<float>() : nullptr;
  const float* __restrict__ w_g = in.w_g;
  for (int64_t b = 0; b < size; ++b) {
    const int64_t e = start + b, i = in.receiver[e];
    const T *__restrict__ a = given.a + e * width, *dot = a_dot + b * width;
    const float *__restrict__ z = z_all + e * width, *__restrict__ d = given.d_total + i * width;
    T *__restrict__ m_row = m_dot + b * width, *da_row = da + b * width;  // may be where ȧ stands
    T* __restrict__ back = out.a + e * width;
    float* __restrict__ d_total = out.d_total + i * width;
    const float f = in.envelope ? in.envelope[e] : 1.0f, f_dot = up.f ? up.f[e] : 0.0f;
    const float g = in.w_g ? given.gate[e] : 1.0f;
    float l_dot = 0.0f, along = 0.0f, bent = 0.0f, with = 0.0f;  // l̇, z·v, z·v̇, D·v
#pragma omp simd reduction(+ : along, bent, with)
    for (int64_t k = 0; k < width; ++k) {
      const float x = widen(a[k]), s = sigmoid(x);
      sigma[k] = s;
      v[k] = x * s;
      v_dot[k] = silu_slope(x, s) * widen(dot[k]);
      along += z[k] * v[k];
      bent += z[k] * v_dot[k];
      with += d[k] * v[k];
    }
    float g_dot = 0.0f, d_logit = 0.0f, logit_back = 0.0f;
    if (in.w_g) {
#pragma omp simd reduction(+ : l_dot)
      for (int64_t k = 0; k < width; ++k) l_dot += w_g[k] * v_dot[k];
      const float slope = g * (1.0f - g);
      g_dot = slope * l_dot;
      d_logit = along * slope;
      logit_back = (bent + f_dot * with + along * (1.0f - 2.0f * g) * l_dot) * slope;
      sums.db_g += logit_back;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) dw_g[k] += d_logit * v_dot[k] + logit_back * v[k];
    }
    float d_envelope = 0.0f;
#pragma omp simd reduction(+ : d_envelope)
    for (int64_t k = 0; k < width; ++k) {
      const float m = g_dot * v[k] + g * v_dot[k];  // ṁ
      d_envelope += d[k] * m;
      d_total[k] += f * m + f_dot * g * v[k];
      m_row[k] = narrow<T>(m);
    }
    if (out.d_envelope) out.d_envelope[e] = d_envelope;
    auto finish = [&](auto gate_weight) {
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float x = widen(a[k]), s = sigma[k], slope = silu_slope(x, s), w = gate_weight(k);
        const float dv = g * z[k] + d_logit * w;
        const float v_back = g_dot * z[k] + g * f_dot * d[k] + logit_back * w;
        back[k] = narrow<T>(v_back * slope + dv * silu_bend(x, s) * widen(dot[k]));
        da_row[k] = narrow<T>(dv * slope);
      }
    };
    if (in.w_g) {
      finish([w_g](int64_t k) { return w_g[k]; });
    } else {
      finish([](int64_t) { return 0.0f; });
    }
  }
}

// From ċ of a block: dc, and what comes back to c and to what is given for t
template <typename T>
void last_changes(const Inputs& in, const Given<T>& given, const T* c_dot, int64_t start,
                  int64_t size, Sums& sums, const Out<T>& out, T* dc) {
  const int64_t width = in.width;
  const float* __restrict__ w_x = in.w_x;
  float* __restrict__ dw_x = sums.dw_x.data_ptr<float>();
  for (int64_t b = 0; b < size; ++b) {
    const int64_t e = start + b;
    const T *__restrict__ c = given.c + e * width, *__restrict__ dot = c_dot + b * width;
    T *__restrict__ dc_row = dc + b * width, *__restrict__ back = out.c + e * width;
    const float grad = given.d_t[e];
    float t_dot = 0.0f;
#pragma omp simd reduction(+ : t_dot)
    for (int64_t k = 0; k < width; ++k) {
      const float x = widen(c[k]), s = sigmoid(x), slope = silu_slope(x, s), rate = widen(dot[k]);
      t_dot += w_x[k] * slope * rate;
      dw_x[k] += grad * slope * rate;
      dc_row[k] = narrow<T>(grad * w_x[k] * slope);
      back[k] = narrow<T>(grad * w_x[k] * silu_bend(x, s) * rate);
    }
    out.d_t[e] = t_dot;
  }
}

template <typename T>
void bends_share(const Inputs& in, const Given<T>& given, const Ups& up, const Tensor& w2,
                 const Tensor& wc, const float* z_all, const T* ds_all, int64_t begin, int64_t end,
                 Sums& sums, const Out<T>& out) {
  const int64_t width = in.width;
  std::vector<T> one(BLOCK * width), two(BLOCK * width), three(BLOCK * width);
  std::vector<float> u(BLOCK * width), dot(BLOCK * width);
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, end - start);
    Tensor s_dot = over(one.data(), size, width), other = over(two.data(), size, width);
    Tensor m_dot = over(three.data(), size, width);
    first_changes(in, up, ds_all, start, size, sums, out, u.data(), dot.data(), one.data());
    at::mm_out(other, s_dot, w2.t());  // ȧ, and then da in its place
    second_changes(in, given, up, z_all, two.data(), start, size, sums, out, three.data(),
                   two.data());
    accumulate<T>(sums.dw2, other, s_dot);
    if (!given.d_t) continue;
    at::mm_out(s_dot, m_dot, wc.t());  // ċ
    last_changes(in, given, one.data(), start, size, sums, out, two.data());
    accumulate<T>(sums.dw_c, other, m_dot);
  }
}

// Gradients of p, q, e, f, W_d, W₂, w_g, b_g, W_c, w_x, D, d_t, a and c; those of c and d_t are
// empty where no d_t was given.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients egnn_slopes_backward(
    const Tensor& up_p, const Tensor& up_q, const Tensor& up_edge,
    const std::optional<Tensor>& up_envelope, const Tensor& p, const Tensor& q, const Tensor& edge,
    const std::optional<Tensor>& envelope, const Tensor& w_d_t, const Tensor& w2,
    const std::optional<Tensor>& w_g, const Tensor& wc, const Tensor& w_x, const Tensor& sender,
    const Tensor& receiver, const Tensor& a, const Tensor& c, const Tensor& gate,
    const Tensor& d_total, const std::optional<Tensor>& d_t, const Tensor& z, const Tensor& ds) {
  const Tensor none = at::zeros({1}, p.options());
  const Inputs in =
      gather(p, q, edge, envelope, w_d_t, w_g, std::nullopt, w_x, none, sender, receiver);
  const Ups up{up_p.const_data_ptr<float>(), up_q.const_data_ptr<float>(),
               up_edge.const_data_ptr<float>(), data_of<float>(up_envelope)};
  Tensor dp = at::zeros_like(p), dq = at::zeros_like(q), d_edge = at::empty_like(edge);
  Tensor d_envelope = at::empty({envelope ? in.n_edges : 0, 1}, p.options());
  Tensor back_total = at::zeros_like(p), back_a = at::empty_like(a);
  const int64_t rows = d_t ? in.n_edges : 0;
  Tensor back_t = at::empty({rows}, p.options()), back_c = at::empty({rows, in.width}, c.options());
  const auto cuts = shares(in.receiver, in.n_edges, at::get_num_threads());
  std::vector<Sums> parts(cuts.size() - 1);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first_share, int64_t past) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t share = first_share; share < past; ++share) {
      parts[share] = Sums(in, cuts[share], cuts[share + 1], p.options());
      in_type_of(a, "potkit::egnn_slopes_backward", [&]<typename T>() {
        const Given<T> given{a.const_data_ptr<T>(), c.const_data_ptr<T>(),
                             gate.const_data_ptr<float>(), d_total.const_data_ptr<float>(),
                             data_of<float>(d_t)};
        const Out<T> out{dp.data_ptr<float>(), d_edge.data_ptr<float>(),
                         envelope ? d_envelope.data_ptr<float>() : nullptr,
                         back_total.data_ptr<float>(), back_t.data_ptr<float>(),
                         back_a.data_ptr<T>(), back_c.data_ptr<T>()};
        bends_share<T>(in, given, up, w2, wc, z.const_data_ptr<float>(), ds.const_data_ptr<T>(),
                       cuts[share], cuts[share + 1], parts[share], out);
      });
    }
  });
  const Sums& whole = together(parts, dq);
  Tensor db_g = at::full({1}, whole.db_g, p.options());
  return {dp,         dq,         d_edge,     d_envelope, whole.dw_d.t().contiguous(),
          whole.dw2,  whole.dw_g, db_g,       whole.dw_c, whole.dw_x,
          back_total, back_t,     back_a,     back_c};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "egnn_slopes(Tensor p, Tensor q, Tensor edge, Tensor? envelope, Tensor w_d_t, Tensor w2, "
      "Tensor? w_g, Tensor? b_g, Tensor w_c, Tensor w_x, Tensor sender, Tensor receiver, Tensor a, "
      "Tensor c, Tensor gate, Tensor d_total, Tensor? d_t, bool keep) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "egnn_slopes_backward(Tensor up_p, Tensor up_q, Tensor up_edge, Tensor? up_envelope, "
      "Tensor p, Tensor q, Tensor edge, Tensor? envelope, Tensor w_d_t, Tensor w2, Tensor? w_g, "
      "Tensor w_c, Tensor w_x, Tensor sender, Tensor receiver, Tensor a, Tensor c, Tensor gate, "
      "Tensor d_total, Tensor? d_t, Tensor z, Tensor ds) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("egnn_slopes", &egnn_slopes);
  library.impl("egnn_slopes_backward", &egnn_slopes_backward);
}

}  // namespace potkit
