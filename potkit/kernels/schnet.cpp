// SchNet's convolution with filters over pairs of atoms, and its derivatives; formulas and names are those of schnet_pairs.py and
// schnet.py: filters W = f (y + a₂) and slopes V = f' (y + a₂) + f y' are never stored, only y and y' as the product left them.
#include "schnet_pairs.h"

#include <ATen/Dispatch.h>

namespace potkit {
namespace {

constexpr int64_t BLOCK = 128;  // pairs; × 2 rows × 256 channels × 4 bytes is 256 kB an array

// log(1 + t) for t in [0, 1] to 1e-7: the series of log around 1, with 1 + t halved where that is nearer to 1
inline float log1p_(float t) {
  const bool upper = t > 0.41421356f;
  const float x = upper ? 0.5f * t - 0.5f : t;
  float p = 7.0376836292e-2f;
  p = p * x - 1.1514610310e-1f;
  p = p * x + 1.1676998740e-1f;
  p = p * x - 1.2420140846e-1f;
  p = p * x + 1.4249322787e-1f;
  p = p * x - 1.6668057665e-1f;
  p = p * x + 2.0000714765e-1f;
  p = p * x - 2.4999993993e-1f;
  p = p * x + 3.3333331174e-1f;
  const float square = x * x;
  return (upper ? 0.69314718f : 0.0f) + (p * x * square - 0.5f * square + x);
}

struct Inputs : Pairs {
  const float *f, *slope, *bias;  // envelope [P], its slope [P] (null: no slopes), a₂
  int64_t order;                  // rows of y per pair, 1 (y) or 2 (y, y')
};

Inputs gather(const Tensor& x, const Tensor& f, const std::optional<Tensor>& slope, const Tensor& bias, const Tensor& i, const Tensor& j) {
  return {{i, j, x}, f.const_data_ptr<float>(), slope ? slope->const_data_ptr<float>() : nullptr, bias.const_data_ptr<float>(), slope ? 2 : 1};
}

// u = A₁ e + a₁ (bias still missing) and u' = A₁ e' -> s = ssp(u), s' = σ(u) u'; with Keep, σ(u) takes the place of u
template <bool Keep, typename T>
void activate(float* u_all, T* s_all, const float* __restrict__ bias, int64_t size, int64_t order, int64_t width) {
  for (int64_t b = 0; b < size; ++b) {
    float* __restrict__ u = u_all + b * order * width;
    const float* __restrict__ du = u + width;
    T* __restrict__ s = s_all + b * order * width;
    T* __restrict__ ds = s + width;
    if (order == 2) {
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float v = u[k] + bias[k], t = exp_(-std::abs(v)), inverse = 1.0f / (1.0f + t);
        const float sigma = v < 0.0f ? t * inverse : inverse;
        s[k] = narrow<T>((v < 0.0f ? 0.0f : v) + log1p_(t) - 0.69314718f);
        ds[k] = narrow<T>(sigma * du[k]);
        if constexpr (Keep) u[k] = sigma;
      }
    } else {
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float v = u[k] + bias[k], t = exp_(-std::abs(v));
        s[k] = narrow<T>((v < 0.0f ? 0.0f : v) + log1p_(t) - 0.69314718f);
        if constexpr (Keep) u[k] = (v < 0.0f ? t : 1.0f) / (1.0f + t);
      }
    }
  }
}

inline Tensor rows_of(const Tensor& parts, int64_t start, int64_t size) {  // [P, order, K] -> [size · order, K]
  return over(const_cast<float*>(parts.const_data_ptr<float>()) + start * parts.size(1) * parts.size(2), size * parts.size(1), parts.size(2));
}

// -- the convolution ------------------------------------------------------------------------------------------------------------
template <typename T>
void forward(const Inputs& in, const float* x, const Tensor& parts, const Tensor& a1, const float* b1, const Tensor& a2, bool keep, Tensor& total,
             T* y_all) {
  const int64_t width = in.width, order = in.order;
  float* sum = total.data_ptr<float>();
  in_shares<1>(in, in.cuts(), {total}, [&](int64_t, int64_t begin, int64_t end, auto& rows) {
    std::vector<float> u_room(BLOCK * order * width);
    std::vector<T> s_room(BLOCK * order * width), y_room(keep ? 0 : BLOCK * order * width);
    for (int64_t start = begin; start < end; start += BLOCK) {
      const int64_t size = std::min(BLOCK, end - start), n = size * order;
      T* y_block = keep ? y_all + start * order * width : y_room.data();
      Tensor u_view = over(u_room.data(), n, width), s_view = over(s_room.data(), n, width), y_view = over(y_block, n, width);
      at::mm_out(u_view, rows_of(parts, start, size), a1.t());
      activate<false>(u_room.data(), s_room.data(), b1, size, order, width);
      at::mm_out(y_view, s_view, a2.t());
      for (int64_t b = 0; b < size; ++b) {
        const int64_t e = start + b, i = in.i[e], j = in.j[e];
        const T* __restrict__ y = y_block + b * order * width;
        const float *__restrict__ bias = in.bias, *__restrict__ x_i = x + i * width, *__restrict__ x_j = x + j * width;
        float *__restrict__ sum_i = sum + i * width, *__restrict__ sum_j = rows[0].row(j, width);
        const float f = in.f[e];
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float w = f * (widen(y[k]) + bias[k]);
          sum_i[k] += x_j[k] * w;
          sum_j[k] += x_i[k] * w;
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor> filtered_forward(const Tensor& x, const Tensor& parts, const Tensor& f, const std::optional<Tensor>& slope,
                                            const Tensor& a1, const Tensor& b1, const Tensor& a2, const Tensor& b2, const Tensor& i,
                                            const Tensor& j, bool keep) {
  const Inputs in = gather(x, f, slope, b2, i, j);
  Tensor total = at::zeros_like(x), y = at::empty({keep ? in.n_pairs : 0, in.order, in.width}, a2.options());
  const float *x_data = x.const_data_ptr<float>(), *bias = b1.const_data_ptr<float>();
  AT_DISPATCH_SWITCH(
      a2.scalar_type(), "potkit::filtered_forward",
      AT_DISPATCH_CASE(at::kFloat, [&] { forward(in, x_data, parts, a1, bias, a2, keep, total, y.data_ptr<float>()); })
          AT_DISPATCH_CASE(at::kBFloat16, [&] { forward(in, x_data, parts, a1, bias, a2, keep, total, y.data_ptr<BFloat16>()); }));
  return {total, y};
}

// -- its derivatives by x and the distances, and theirs ---------------------------------------------------------------------------
template <typename T>
void slopes(const Inputs& in, const float* grad, const float* x, const T* y_all, Tensor& dx, float* d_distance) {
  const int64_t width = in.width;
  float* sum = dx.data_ptr<float>();
  in_shares<1>(in, in.cuts(), {dx}, [&](int64_t, int64_t begin, int64_t end, auto& rows) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = in.i[e], j = in.j[e];
      const T *__restrict__ y = y_all + e * 2 * width, *__restrict__ dy = y + width;
      const float *__restrict__ bias = in.bias, *__restrict__ x_i = x + i * width, *__restrict__ x_j = x + j * width;
      const float *__restrict__ g_i = grad + i * width, *__restrict__ g_j = grad + j * width;
      float *__restrict__ sum_i = sum + i * width, *__restrict__ sum_j = rows[0].row(j, width);
      const float f = in.f[e], f1 = in.slope[e];
      float out = 0.0f;
#pragma omp simd reduction(+ : out)
      for (int64_t k = 0; k < width; ++k) {
        const float value = widen(y[k]) + bias[k], w = f * value;
        out += (g_i[k] * x_j[k] + g_j[k] * x_i[k]) * (f1 * value + f * widen(dy[k]));
        sum_i[k] += g_j[k] * w;
        sum_j[k] += g_i[k] * w;
      }
      d_distance[e] = out;
    }
  });
}

std::tuple<Tensor, Tensor> filtered_slopes(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& f, const Tensor& slope,
                                           const Tensor& b2, const Tensor& i, const Tensor& j) {
  const Inputs in = gather(x, f, slope, b2, i, j);
  Tensor dx = at::zeros_like(x), d_distance = at::empty({in.n_pairs}, x.options());
  const float *g_data = grad.const_data_ptr<float>(), *x_data = x.const_data_ptr<float>();
  AT_DISPATCH_SWITCH(y.scalar_type(), "potkit::filtered_slopes",
                     AT_DISPATCH_CASE(at::kFloat, [&] { slopes(in, g_data, x_data, y.const_data_ptr<float>(), dx, d_distance.data_ptr<float>()); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] {
                           slopes(in, g_data, x_data, y.const_data_ptr<BFloat16>(), dx, d_distance.data_ptr<float>());
                         }));
  return {dx, d_distance};
}

template <typename T>
void slopes_backward(const Inputs& in, const float* up, const float* up_distance, const float* grad, const float* x, const T* y_all, Tensor& d_grad,
                     Tensor& dx, T* dy_all) {
  const int64_t width = in.width;
  float *g_sum = d_grad.data_ptr<float>(), *x_sum = dx.data_ptr<float>();
  in_shares<2>(in, in.cuts(), {d_grad, dx}, [&](int64_t, int64_t begin, int64_t end, auto& rows) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = in.i[e], j = in.j[e];
      const T *__restrict__ y = y_all + e * 2 * width, *__restrict__ y1 = y + width;
      T *__restrict__ dy = dy_all + e * 2 * width, *__restrict__ dy1 = dy + width;
      const float *__restrict__ bias = in.bias, *__restrict__ x_i = x + i * width, *__restrict__ x_j = x + j * width;
      const float *__restrict__ g_i = grad + i * width, *__restrict__ g_j = grad + j * width;
      const float *__restrict__ u_i = up + i * width, *__restrict__ u_j = up + j * width;
      float *__restrict__ dg_i = g_sum + i * width, *__restrict__ dg_j = rows[0].row(j, width);
      float *__restrict__ dx_i = x_sum + i * width, *__restrict__ dx_j = rows[1].row(j, width);
      const float f = in.f[e], f1 = in.slope[e], rate = up_distance[e];
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float value = widen(y[k]) + bias[k], w = f * value, v = rate * (f1 * value + f * widen(y1[k]));
        dg_i[k] += u_j[k] * w + x_j[k] * v;
        dg_j[k] += u_i[k] * w + x_i[k] * v;
        dx_i[k] += g_j[k] * v;
        dx_j[k] += g_i[k] * v;
        const float dw = u_i[k] * g_j[k] + u_j[k] * g_i[k], dv = rate * (g_i[k] * x_j[k] + g_j[k] * x_i[k]);
        dy[k] = narrow<T>(f * dw + f1 * dv);
        dy1[k] = narrow<T>(f * dv);
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> filtered_slopes_backward(const Tensor& up, const Tensor& up_distance, const Tensor& grad, const Tensor& x,
                                                            const Tensor& y, const Tensor& f, const Tensor& slope, const Tensor& b2,
                                                            const Tensor& i, const Tensor& j) {
  const Inputs in = gather(x, f, slope, b2, i, j);
  Tensor d_grad = at::zeros_like(x), dx = at::zeros_like(x), dy = at::empty_like(y);
  auto data = [](const Tensor& t) { return t.const_data_ptr<float>(); };
  AT_DISPATCH_SWITCH(y.scalar_type(), "potkit::filtered_slopes_backward", AT_DISPATCH_CASE(at::kFloat, [&] {
                       slopes_backward(in, data(up), data(up_distance), data(grad), data(x), y.const_data_ptr<float>(), d_grad, dx,
                                       dy.data_ptr<float>());
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
                       slopes_backward(in, data(up), data(up_distance), data(grad), data(x), y.const_data_ptr<BFloat16>(), d_grad, dx,
                                       dy.data_ptr<BFloat16>());
                     }));
  return {d_grad, dx, dy};
}

// -- the backward pass of the convolution -----------------------------------------------------------------------------------------
struct Sums {  // weights' gradients of one thread
  Tensor da1, db1, da2, db2;
};

template <typename T>
void backward_share(const Inputs& in, const float* grad, const T* up_y, const float* x, const T* y_all, const Tensor& parts, const Tensor* bent,
                    const Tensor& a1, const float* b1, const Tensor& a2, int64_t begin, int64_t end, Sums& sums, float* dx, Rows& dx_rows,
                    float* d_distance) {
  const int64_t width = in.width, order = in.order, step = order * width;
  std::vector<float> u_room(BLOCK * step), du_room(std::is_same_v<T, float> ? 0 : BLOCK * step), bent_room(bent ? BLOCK * width : 0);
  std::vector<T> s_room(BLOCK * step), d_room(BLOCK * step);
  float* __restrict__ db1 = sums.db1.data_ptr<float>();
  float* __restrict__ db2 = sums.db2.data_ptr<float>();
  for (int64_t start = begin; start < end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, end - start), n = size * order;
    Tensor u_view = over(u_room.data(), n, width), s_view = over(s_room.data(), n, width), d_view = over(d_room.data(), n, width);
    at::mm_out(u_view, rows_of(parts, start, size), a1.t());
    activate<true>(u_room.data(), s_room.data(), b1, size, order, width);
    // c = Σ x ⊙ f (y + a₂): dy, and with it what comes for y and y' from elsewhere
    for (int64_t b = 0; b < size; ++b) {
      const int64_t e = start + b, i = in.i[e], j = in.j[e];
      const float *__restrict__ bias = in.bias, *__restrict__ x_i = x + i * width, *__restrict__ x_j = x + j * width;
      const float *__restrict__ g_i = grad + i * width, *__restrict__ g_j = grad + j * width;
      const T *__restrict__ y = y_all + e * step, *__restrict__ y1 = y + width;
      T *__restrict__ dy = d_room.data() + b * step, *__restrict__ dy1 = dy + width;
      const float f = in.f[e];
      if (dx) {
        float *__restrict__ dx_i = dx + i * width, *__restrict__ dx_j = dx_rows.row(j, width);
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float w = f * (widen(y[k]) + bias[k]);
          dx_i[k] += g_j[k] * w;
          dx_j[k] += g_i[k] * w;
        }
      }
      if (d_distance) {  // by f and y; what goes through y' follows below
        const float f1 = in.slope[e];
        float out = 0.0f;
#pragma omp simd reduction(+ : out)
        for (int64_t k = 0; k < width; ++k)
          out += (g_i[k] * x_j[k] + g_j[k] * x_i[k]) * (f1 * (widen(y[k]) + bias[k]) + f * widen(y1[k]));
        if (up_y) {
          const T* __restrict__ more = up_y + e * step;
#pragma omp simd reduction(+ : out)
          for (int64_t k = 0; k < width; ++k) out += widen(more[k]) * widen(y1[k]);
        }
        d_distance[e] = out;
      }
      if (up_y) {
        const T *__restrict__ more = up_y + e * step, *__restrict__ more1 = more + width;
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float d = f * (g_i[k] * x_j[k] + g_j[k] * x_i[k]) + widen(more[k]);
          db2[k] += d;
          dy[k] = narrow<T>(d);
        }
        if (order == 2) std::copy_n(more1, width, dy1);
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float d = f * (g_i[k] * x_j[k] + g_j[k] * x_i[k]);
          db2[k] += d;
          dy[k] = narrow<T>(d);
        }
        if (order == 2) std::fill_n(dy1, width, T(0.0f));
      }
    }
    // y = A₂ s
    accumulate<T>(sums.da2, d_view, s_view);
    at::mm_out(s_view, d_view, a2);
    if (bent) {
      Tensor bent_view = over(bent_room.data(), size, width);
      at::mm_out(bent_view, over(const_cast<float*>(bent->const_data_ptr<float>()) + start * bent->size(1), size, bent->size(1)), a1.t());
    }
    // s = ssp(u), s' = σ(u) u'
    float* du_block = std::is_same_v<T, float> ? reinterpret_cast<float*>(s_room.data()) : du_room.data();
    for (int64_t b = 0; b < size; ++b) {
      const float *__restrict__ sigma = u_room.data() + b * step, *__restrict__ u1 = sigma + width;
      const T *ds = s_room.data() + b * step, *ds1 = ds + width;
      float *du = du_block + b * step, *du1 = du + width;  // may be where ds stands
      if (bent) {  // s'' = σ (1 − σ) u'² + σ u''
        const float* __restrict__ u2 = bent_room.data() + b * width;
        float out = 0.0f;
#pragma omp simd reduction(+ : out)
        for (int64_t k = 0; k < width; ++k) out += widen(ds1[k]) * sigma[k] * ((1.0f - sigma[k]) * u1[k] * u1[k] + u2[k]);
        d_distance[start + b] += out;
      }
      if (order == 2) {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float along = widen(ds1[k]) * sigma[k], d = widen(ds[k]) * sigma[k] + along * (1.0f - sigma[k]) * u1[k];
          db1[k] += d;
          du[k] = d;
          du1[k] = along;
        }
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const float d = widen(ds[k]) * sigma[k];
          db1[k] += d;
          du[k] = d;
        }
      }
    }
    sums.da1.addmm_(over(du_block, n, width).t(), rows_of(parts, start, size));
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> filtered_backward(
    const Tensor& grad, const std::optional<Tensor>& up_y, const Tensor& x, const Tensor& y, const Tensor& parts, const std::optional<Tensor>& bent,
    const Tensor& f, const std::optional<Tensor>& slope, const Tensor& a1, const Tensor& b1, const Tensor& a2, const Tensor& b2, const Tensor& i,
    const Tensor& j, bool need_x, bool need_distance) {
  const Inputs in = gather(x, f, slope, b2, i, j);
  Tensor dx = at::zeros({need_x ? in.n_atoms : 0, in.width}, x.options()), d_distance = at::empty({need_distance ? in.n_pairs : 0}, x.options());
  const auto cuts = in.cuts();
  std::vector<Sums> parts_of(cuts.size() - 1);
  for (Sums& s : parts_of) s = {at::zeros_like(a1), at::zeros_like(b1), at::zeros(a2.sizes(), x.options()), at::zeros_like(b2)};
  auto work = [&](int64_t share, int64_t begin, int64_t end, Rows* rows) {
    Rows none;
    float *dx_data = need_x ? dx.data_ptr<float>() : nullptr, *dd = need_distance ? d_distance.data_ptr<float>() : nullptr;
    const float *g_data = grad.const_data_ptr<float>(), *x_data = x.const_data_ptr<float>(), *bias = b1.const_data_ptr<float>();
    const Tensor* bent_data = bent ? &*bent : nullptr;
    AT_DISPATCH_SWITCH(a2.scalar_type(), "potkit::filtered_backward", AT_DISPATCH_CASE(at::kFloat, [&] {
                         backward_share(in, g_data, up_y ? up_y->const_data_ptr<float>() : nullptr, x_data, y.const_data_ptr<float>(), parts,
                                        bent_data, a1, bias, a2, begin, end, parts_of[share], dx_data, rows ? *rows : none, dd);
                       }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
                         backward_share(in, g_data, up_y ? up_y->const_data_ptr<BFloat16>() : nullptr, x_data, y.const_data_ptr<BFloat16>(),
                                        parts, bent_data, a1, bias, a2, begin, end, parts_of[share], dx_data, rows ? *rows : none, dd);
                       }));
  };
  if (need_x) {
    in_shares<1>(in, cuts, {dx}, [&](int64_t share, int64_t begin, int64_t end, auto& rows) { work(share, begin, end, &rows[0]); });
  } else {
    in_shares<0>(in, cuts, {}, [&](int64_t share, int64_t begin, int64_t end, auto&) { work(share, begin, end, nullptr); });
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  Sums& whole = parts_of[0];
  for (size_t k = 1; k < parts_of.size(); ++k) {
    whole.da1.add_(parts_of[k].da1), whole.db1.add_(parts_of[k].db1);
    whole.da2.add_(parts_of[k].da2), whole.db2.add_(parts_of[k].db2);
  }
  return {dx, d_distance, whole.da1, whole.db1, whole.da2, whole.db2};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def("filtered_forward", &filtered_forward);
  library.def("filtered_slopes", &filtered_slopes);
  library.def("filtered_slopes_backward", &filtered_slopes_backward);
  library.def("filtered_backward", &filtered_backward);
}

}  // namespace potkit
