// SchNet's convolution with filters that are interpolated in a table; formulas and names are those of schnet_table.py:
// W_p = Σ_m C_pm T_mn with n the pair's cell, m = 0 … 5. The convolution is linear in x, C and T: its derivatives are sums of the same kind.
#include "schnet_pairs.h"

namespace potkit {
namespace {

constexpr int64_t ROWS = 6;  // of the table, per cell

struct Inputs : Pairs {
  const float *table, *weight;  // T [6, M, F], C [P, 6]
  const int64_t* cell;          // [P]
  int64_t plane;                // from a row of the table to the next of its cell
  Inputs(const Tensor& x, const Tensor& weight, const Tensor& table, const Tensor& cell, const Tensor& i, const Tensor& j)
      : Pairs(i, j, x), table(table.const_data_ptr<float>()), weight(weight.const_data_ptr<float>()), cell(cell.const_data_ptr<int64_t>()),
        plane(table.size(1) * table.size(2)) {}
};

inline const float* data(const Tensor& t) { return t.const_data_ptr<float>(); }

// Σ_m c_m T_m of channel k
inline float blend(const float* __restrict__ t, const float* __restrict__ c, int64_t plane, int64_t k) {
  return c[0] * t[k] + c[1] * t[plane + k] + c[2] * t[2 * plane + k] + c[3] * t[3 * plane + k] + c[4] * t[4 * plane + k] +
         c[5] * t[5 * plane + k];
}

Tensor table_forward(const Tensor& x, const Tensor& weight, const Tensor& table, const Tensor& cell, const Tensor& i, const Tensor& j) {
  const Inputs in(x, weight, table, cell, i, j);
  Tensor total = at::zeros_like(x);
  const int64_t width = in.width, plane = in.plane;
  const float* values = data(x);
  float* sum = total.data_ptr<float>();
  in_shares<1>(in, in.cuts(), {total}, [&](int64_t, int64_t begin, int64_t end, auto& rows) {
    for (int64_t e = begin; e < end; ++e) {
      const int64_t i = in.i[e] * width, j = in.j[e] * width;
      const float *__restrict__ t = in.table + in.cell[e] * width, *__restrict__ x_i = values + i, *__restrict__ x_j = values + j;
      float *__restrict__ sum_i = sum + i, *__restrict__ sum_j = rows[0].row(in.j[e], width);
      float c[ROWS];
      std::copy_n(in.weight + e * ROWS, ROWS, c);
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const float w = blend(t, c, plane, k);
        sum_i[k] += x_j[k] * w;
        sum_j[k] += x_i[k] * w;
      }
    }
  });
  return total;
}

// For each pair, z = g_i x_j + g_j x_i: dC_m = z · T_m, and dT_m += C_m z in the thread's own table.
template <bool WithC, bool WithT>
void backward_share(const Inputs& in, const float* grad, const float* x, float* dx, Rows& dx_rows, float* d_weight, float* d_table, int64_t begin,
                    int64_t end) {
  const int64_t width = in.width, plane = in.plane;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t i = in.i[e] * width, j = in.j[e] * width, place = in.cell[e] * width;
    const float *__restrict__ t = in.table + place, *__restrict__ x_i = x + i, *__restrict__ x_j = x + j;
    const float *__restrict__ g_i = grad + i, *__restrict__ g_j = grad + j;
    float *__restrict__ dx_i = dx + i, *__restrict__ dx_j = dx_rows.row(in.j[e], width);
    float* __restrict__ dt = WithT ? d_table + place : nullptr;
    float c[ROWS];
    std::copy_n(in.weight + e * ROWS, ROWS, c);
    float d0 = 0.0f, d1 = 0.0f, d2 = 0.0f, d3 = 0.0f, d4 = 0.0f, d5 = 0.0f;
#pragma omp simd reduction(+ : d0, d1, d2, d3, d4, d5)
    for (int64_t k = 0; k < width; ++k) {
      const float w = blend(t, c, plane, k), z = g_i[k] * x_j[k] + g_j[k] * x_i[k];
      dx_i[k] += g_j[k] * w;
      dx_j[k] += g_i[k] * w;
      if constexpr (WithC) {
        d0 += z * t[k], d1 += z * t[plane + k], d2 += z * t[2 * plane + k];
        d3 += z * t[3 * plane + k], d4 += z * t[4 * plane + k], d5 += z * t[5 * plane + k];
      }
      if constexpr (WithT) {
        dt[k] += c[0] * z, dt[plane + k] += c[1] * z, dt[2 * plane + k] += c[2] * z;
        dt[3 * plane + k] += c[3] * z, dt[4 * plane + k] += c[4] * z, dt[5 * plane + k] += c[5] * z;
      }
    }
    if constexpr (WithC) {
      float* out = d_weight + e * ROWS;
      out[0] = d0, out[1] = d1, out[2] = d2, out[3] = d3, out[4] = d4, out[5] = d5;
    }
  }
}

// A gradient of the table per thread, and their sum.
struct Tables {
  std::vector<Tensor> own;
  Tables(const Tensor& table, size_t n, bool wanted) : own(n) {
    for (Tensor& t : own) t = wanted ? at::zeros_like(table) : at::empty({0}, table.options());
  }
  float* operator[](int64_t share) { return own[share].data_ptr<float>(); }
  Tensor total() {
    for (size_t k = 1; k < own.size(); ++k) own[0].add_(own[k]);
    return own[0];
  }
};

std::tuple<Tensor, Tensor, Tensor> table_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& table, const Tensor& cell,
                                                  const Tensor& i, const Tensor& j, bool need_weight, bool need_table) {
  const Inputs in(x, weight, table, cell, i, j);
  const auto cuts = in.cuts();
  Tensor dx = at::zeros_like(x), d_weight = at::empty({need_weight ? in.n_pairs : 0, ROWS}, x.options());
  Tables d_table(table, cuts.size() - 1, need_table);
  float *sum = dx.data_ptr<float>(), *dw = d_weight.data_ptr<float>();
  in_shares<1>(in, cuts, {dx}, [&](int64_t share, int64_t begin, int64_t end, auto& rows) {
    float* dt = d_table[share];
    if (need_weight && need_table) {
      backward_share<true, true>(in, data(grad), data(x), sum, rows[0], dw, dt, begin, end);
    } else if (need_table) {
      backward_share<false, true>(in, data(grad), data(x), sum, rows[0], dw, dt, begin, end);
    } else if (need_weight) {
      backward_share<true, false>(in, data(grad), data(x), sum, rows[0], dw, dt, begin, end);
    } else {
      backward_share<false, false>(in, data(grad), data(x), sum, rows[0], dw, dt, begin, end);
    }
  });
  return {dx, d_weight, d_table.total()};
}

// Gradients of dx and dC above: ``up`` [N, F] and ``rate`` [P, 6] come for them. With V = Σ_m rate_m T_m and q = up_i g_j + up_j g_i,
// dg = convolve(up, W) + convolve(x, V), dx = convolve(g, V), dT_m += C_m q + rate_m z, dC_m = q · T_m.
template <bool WithC>
void again_share(const Inputs& in, const float* up, const float* rate, const float* grad, const float* x, float* d_grad, Rows& d_grad_rows,
                 float* dx, Rows& dx_rows, float* d_weight, float* d_table, int64_t begin, int64_t end) {
  const int64_t width = in.width, plane = in.plane;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t i = in.i[e] * width, j = in.j[e] * width, place = in.cell[e] * width;
    const float *__restrict__ t = in.table + place, *__restrict__ x_i = x + i, *__restrict__ x_j = x + j;
    const float *__restrict__ g_i = grad + i, *__restrict__ g_j = grad + j;
    const float *__restrict__ u_i = up + i, *__restrict__ u_j = up + j;
    float *__restrict__ dg_i = d_grad + i, *__restrict__ dg_j = d_grad_rows.row(in.j[e], width);
    float *__restrict__ dx_i = dx + i, *__restrict__ dx_j = dx_rows.row(in.j[e], width), *__restrict__ dt = d_table + place;
    float c[ROWS], r[ROWS];
    std::copy_n(in.weight + e * ROWS, ROWS, c);
    std::copy_n(rate + e * ROWS, ROWS, r);
    float d0 = 0.0f, d1 = 0.0f, d2 = 0.0f, d3 = 0.0f, d4 = 0.0f, d5 = 0.0f;
#pragma omp simd reduction(+ : d0, d1, d2, d3, d4, d5)
    for (int64_t k = 0; k < width; ++k) {
      const float w = blend(t, c, plane, k), v = blend(t, r, plane, k);
      const float q = u_i[k] * g_j[k] + u_j[k] * g_i[k], z = g_i[k] * x_j[k] + g_j[k] * x_i[k];
      dg_i[k] += u_j[k] * w + x_j[k] * v;
      dg_j[k] += u_i[k] * w + x_i[k] * v;
      dx_i[k] += g_j[k] * v;
      dx_j[k] += g_i[k] * v;
      dt[k] += c[0] * q + r[0] * z, dt[plane + k] += c[1] * q + r[1] * z, dt[2 * plane + k] += c[2] * q + r[2] * z;
      dt[3 * plane + k] += c[3] * q + r[3] * z, dt[4 * plane + k] += c[4] * q + r[4] * z, dt[5 * plane + k] += c[5] * q + r[5] * z;
      if constexpr (WithC) {
        d0 += q * t[k], d1 += q * t[plane + k], d2 += q * t[2 * plane + k];
        d3 += q * t[3 * plane + k], d4 += q * t[4 * plane + k], d5 += q * t[5 * plane + k];
      }
    }
    if constexpr (WithC) {
      float* out = d_weight + e * ROWS;
      out[0] = d0, out[1] = d1, out[2] = d2, out[3] = d3, out[4] = d4, out[5] = d5;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> table_again(const Tensor& up, const Tensor& rate, const Tensor& grad, const Tensor& x,
                                                       const Tensor& weight, const Tensor& table, const Tensor& cell, const Tensor& i,
                                                       const Tensor& j, bool need_weight) {
  const Inputs in(x, weight, table, cell, i, j);
  const auto cuts = in.cuts();
  Tensor d_grad = at::zeros_like(x), dx = at::zeros_like(x), d_weight = at::empty({need_weight ? in.n_pairs : 0, ROWS}, x.options());
  Tables d_table(table, cuts.size() - 1, true);
  float *g_sum = d_grad.data_ptr<float>(), *x_sum = dx.data_ptr<float>(), *dw = d_weight.data_ptr<float>();
  in_shares<2>(in, cuts, {d_grad, dx}, [&](int64_t share, int64_t begin, int64_t end, auto& rows) {
    auto work = need_weight ? again_share<true> : again_share<false>;
    work(in, data(up), data(rate), data(grad), data(x), g_sum, rows[0], x_sum, rows[1], dw, d_table[share], begin, end);
  });
  return {d_grad, dx, d_weight, d_table.total()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def("table_forward", &table_forward);
  library.def("table_backward", &table_backward);
  library.def("table_again", &table_again);
}

}  // namespace potkit
