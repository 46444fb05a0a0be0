// What else TorchMD-Net ET does: the neighbour embedding (equation 3) and the change of an atom's features by attention (8 and 9).
#include "torchmd_et.h"

namespace potkit {
namespace {

constexpr int64_t BLOCK = 256;  // pieces of work; × 256 channels × 4 bytes is 256 kB

// n_i = Σ_j h_j ⊙ (W e_ij + w) f_c
template <typename T>
void neighbours_share(const Edges& in, Work work, const Share& share, const float* h, const Tensor& weight_t,
                      const float* __restrict__ bias, int64_t width, float* total) {
  std::vector<T> basis_room(BLOCK * in.radial), pre_room(BLOCK * width);
  T *basis = basis_room.data(), *pre = pre_room.data();
  for (int64_t start = share.begin; start < share.end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, share.end - start);
    basis_rows(in, &work[start], size, basis);
    Tensor pre_view = over(pre, size, width);
    at::mm_out(pre_view, over(basis, size, in.radial), weight_t);
    for (int64_t b = 0; b < size; ++b) {
      const T* __restrict__ row = pre + b * width;
      for (const int64_t e : {work[start + b].edge, work[start + b].back}) {
        if (e < 0) continue;
        const float* __restrict__ from = h + in.sender[e] * width;
        float* __restrict__ sum = total + in.receiver[e] * width;
        const float f = in.envelope[e];
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) sum[c] += f * from[c] * (widen(row[c]) + bias[c]);
      }
    }
  }
}

Tensor neighbours_forward(const Tensor& h, const Tensor& basis, const Tensor& envelope, const Tensor& weight,
                          const Tensor& bias, const Tensor& sender, const Tensor& receiver, const Tensor& pieces) {
  Tensor total = at::zeros_like(h);
  const Edges in(basis, envelope, std::nullopt, sender, receiver, h.size(0));
  const Work work = work_of(pieces);
  const auto shares = divide(in, work, at::get_num_threads());
  std::vector<Rows> rows;
  for (const Share& share : shares) rows.emplace_back(total, share);
  const Tensor weight_t = weight.t();
  at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t t = begin; t < end; ++t) {
      auto run = [&](auto zero) {
        neighbours_share<decltype(zero)>(in, work, shares[t], h.const_data_ptr<float>(), weight_t, bias.const_data_ptr<float>(), h.size(1),
                                         rows[t].data);
      };
      weight.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
    }
  });
  for (size_t t = 0; t < shares.size(); ++t) rows[t].add_to(total, shares[t]);
  return total;
}

template <typename T>
void neighbours_backward_share(const Edges& in, Work work, const Share& share, const float* h, const Tensor& weight,
                               const float* __restrict__ bias, int64_t width, const float* grad, float* d_h, float* d_basis,
                               float* d_envelope, Tensor& d_weight_t, float* __restrict__ d_bias) {
  const bool need_weights = d_weight_t.numel() > 0;
  std::vector<T> basis_room(BLOCK * in.radial), pre_room(BLOCK * width), d_basis_room(BLOCK * in.radial);
  std::vector<float> sum_room(width);
  T *basis = basis_room.data(), *pre = pre_room.data();
  float* __restrict__ sum = sum_room.data();
  const Tensor weight_t = weight.t();
  Tensor product = at::empty_like(d_weight_t, weight.options());
  for (int64_t start = share.begin; start < share.end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, share.end - start);
    basis_rows(in, &work[start], size, basis);
    Tensor basis_view = over(basis, size, in.radial), pre_view = over(pre, size, width);
    Tensor d_basis_view = over(d_basis_room.data(), size, in.radial);
    at::mm_out(pre_view, basis_view, weight_t);
    for (int64_t b = 0; b < size; ++b) {
      T* __restrict__ row = pre + b * width;
      std::fill(sum_room.begin(), sum_room.end(), 0.0f);
      for (const int64_t e : {work[start + b].edge, work[start + b].back}) {
        if (e < 0) continue;
        const float *__restrict__ from = h + in.sender[e] * width, *__restrict__ g = grad + in.receiver[e] * width;
        float* __restrict__ to = d_h + in.sender[e] * width;
        const float f = in.envelope[e];
        float d_f = 0.0f;
#pragma omp simd reduction(+ : d_f)
        for (int64_t c = 0; c < width; ++c) {
          const float filter = widen(row[c]) + bias[c], along = g[c] * from[c];
          d_f += along * filter;
          sum[c] += f * along;
          to[c] += f * g[c] * filter;
        }
        if (d_envelope) d_envelope[e] = d_f;
      }
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        d_bias[c] += sum[c];
        row[c] = narrow<T>(sum[c]);
      }
    }
    if (need_weights) add_product<T>(d_weight_t, basis_view, pre_view, product);
    at::mm_out(d_basis_view, pre_view, weight);
    give_halves(in, &work[start], size, d_basis_room.data(), d_basis);
  }
}

// Gradients of h, basis, envelope and weight (empty if not wanted) and bias
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> neighbours_backward(
    const Tensor& h, const Tensor& basis, const Tensor& envelope, const Tensor& weight,
    const Tensor& bias, const Tensor& sender, const Tensor& receiver, const Tensor& pieces,
    const Tensor& grad, bool need_envelope, bool need_weights) {
  const Edges in(basis, envelope, std::nullopt, sender, receiver, h.size(0));
  const int64_t threads = at::get_num_threads(), width = h.size(1);
  Tensor d_h = at::zeros_like(h), d_basis = at::empty_like(basis), d_envelope = at::empty({need_envelope ? in.n_edges : 0, 1}, h.options());
  Tensor d_weights = at::zeros({threads, need_weights ? in.radial : 0, width}, h.options());
  Tensor d_biases = at::zeros({threads, width}, h.options());
  const Work work = work_of(pieces);
  const auto shares = divide(in, work, threads);
  std::vector<Rows> rows;
  for (const Share& share : shares) rows.emplace_back(d_h, share);
  at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t t = begin; t < end; ++t) {
      Tensor d_weight_t = d_weights.select(0, t);
      auto run = [&](auto zero) {
        neighbours_backward_share<decltype(zero)>(
            in, work, shares[t], h.const_data_ptr<float>(), weight, bias.const_data_ptr<float>(), width, grad.const_data_ptr<float>(),
            rows[t].data, d_basis.data_ptr<float>(), need_envelope ? d_envelope.data_ptr<float>() : nullptr, d_weight_t,
            d_biases.data_ptr<float>() + t * width);
      };
      weight.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
    }
  });
  for (size_t t = 0; t < shares.size(); ++t) rows[t].add_to(d_h, shares[t]);
  return {d_h, d_basis, d_envelope, d_weights.sum(0).t().contiguous(), d_biases.sum(0)};
}

// Δx = q¹ + q² ⊙ ⟨u¹, u²⟩ and Δv = vector + q³ ⊙ u³, with (q¹, q², q³) = out [N, 3F] and (u¹, u², u³) = mix [N, 3, 3F]
template <typename T>
void update_rows(const T* out, const T* mix, const float* vector, int64_t width, int64_t begin, int64_t end, float* x, float* v) {
  for (int64_t i = begin; i < end; ++i) {
    const T *__restrict__ q = out + i * 3 * width, *__restrict__ u = mix + i * 9 * width;
    const float* __restrict__ m = vector + i * 3 * width;
    float *__restrict__ dx = x + i * width, *__restrict__ dv = v + i * 3 * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float dot = widen(u[c]) * widen(u[width + c]) + widen(u[3 * width + c]) * widen(u[4 * width + c]) +
                        widen(u[6 * width + c]) * widen(u[7 * width + c]);
      const float q3 = widen(q[2 * width + c]);
      dx[c] = widen(q[c]) + widen(q[width + c]) * dot;
      dv[c] = m[c] + q3 * widen(u[2 * width + c]);
      dv[width + c] = m[width + c] + q3 * widen(u[5 * width + c]);
      dv[2 * width + c] = m[2 * width + c] + q3 * widen(u[8 * width + c]);
    }
  }
}

template <typename T>
void update_rows_backward(const T* out, const T* mix, const float* gx, const float* gv, int64_t width, int64_t begin, int64_t end, T* d_out,
                          T* d_mix) {
  for (int64_t i = begin; i < end; ++i) {
    const T *__restrict__ q = out + i * 3 * width, *__restrict__ u = mix + i * 9 * width;
    const float *__restrict__ x = gx + i * width, *__restrict__ v = gv + i * 3 * width;
    T *__restrict__ dq = d_out + i * 3 * width, *__restrict__ du = d_mix + i * 9 * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float q3 = widen(q[2 * width + c]), along = x[c] * widen(q[width + c]);
      float dot = 0.0f, d_q3 = 0.0f;
      for (int64_t a = 0; a < 3; ++a) {
        const int64_t at = 3 * a * width + c;
        const float u1 = widen(u[at]), u2 = widen(u[at + width]), g = v[a * width + c];
        dot += u1 * u2;
        d_q3 += g * widen(u[at + 2 * width]);
        du[at] = narrow<T>(along * u2);
        du[at + width] = narrow<T>(along * u1);
        du[at + 2 * width] = narrow<T>(g * q3);
      }
      dq[c] = narrow<T>(x[c]);
      dq[width + c] = narrow<T>(x[c] * dot);
      dq[2 * width + c] = narrow<T>(d_q3);
    }
  }
}

std::tuple<Tensor, Tensor> update_forward(const Tensor& out, const Tensor& mix, const Tensor& vector) {
  const int64_t n = vector.size(0), width = vector.size(2);
  Tensor x = at::empty({n, width}, vector.options()), v = at::empty_like(vector);
  at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    auto run = [&](auto zero) {
      using T = decltype(zero);
      update_rows(out.const_data_ptr<T>(), mix.const_data_ptr<T>(), vector.const_data_ptr<float>(), width, begin, end, x.data_ptr<float>(),
                  v.data_ptr<float>());
    };
    out.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
  });
  return {x, v};
}

std::tuple<Tensor, Tensor> update_backward(const Tensor& out, const Tensor& mix, const Tensor& d_x, const Tensor& d_v) {
  Tensor d_out = at::empty_like(out), d_mix = at::empty_like(mix);
  at::parallel_for(0, d_x.size(0), 64, [&](int64_t begin, int64_t end) {
    auto run = [&](auto zero) {
      using T = decltype(zero);
      update_rows_backward(out.const_data_ptr<T>(), mix.const_data_ptr<T>(), d_x.const_data_ptr<float>(), d_v.const_data_ptr<float>(),
                           d_x.size(1), begin, end, d_out.data_ptr<T>(), d_mix.data_ptr<T>());
    };
    out.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
  });
  return {d_out, d_mix};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "torchmd_et_neighbours_forward(Tensor h, Tensor basis, Tensor envelope, Tensor "
      "weight, Tensor bias, Tensor sender, Tensor receiver, Tensor pieces) -> Tensor");
  library.def(
      "torchmd_et_neighbours_backward(Tensor h, Tensor basis, Tensor envelope, Tensor "
      "weight, Tensor bias, Tensor sender, Tensor receiver, Tensor pieces, Tensor grad, "
      "bool need_envelope, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "torchmd_et_update_forward(Tensor out, Tensor mix, Tensor vector) -> (Tensor, Tensor)");
  library.def(
      "torchmd_et_update_backward(Tensor out, Tensor mix, Tensor d_x, Tensor d_v) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("torchmd_et_neighbours_forward", &neighbours_forward);
  library.impl("torchmd_et_neighbours_backward", &neighbours_backward);
  library.impl("torchmd_et_update_forward", &update_forward);
  library.impl("torchmd_et_update_backward", &update_backward);
}

}  // namespace potkit
