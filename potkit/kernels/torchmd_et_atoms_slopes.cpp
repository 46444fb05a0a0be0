// What −∂E/∂x takes of what else TorchMD-Net ET does: the backward passes of the backward passes in
// torchmd_et_atoms.cpp. As in torchmd_et_slopes.cpp, what comes back to the gradients is a change
// of the inputs, written `dot_`, and what is differentiated is the change of the results.
#include "torchmd_et.h"

namespace potkit {
namespace {

constexpr int64_t BLOCK = 256;  // pieces of work; × 256 channels × 4 bytes is 256 kB

// -- n_i = Σ_j h_j ⊙ F f_c, with F = W e_ij + w ----------------------------------------------------
struct Neighbours {
  // grad: given for n; d_envelope: null if not wanted
  const float *h, *bias, *grad, *dot_h, *dot_basis, *dot_envelope;
  float *d_h, *d_grad, *d_envelope;
  int64_t width;
};

// Of an edge, with its filters and their change; adds to the derivatives by both.
inline void neighbour(const Edges& in, const Neighbours& all, int64_t e,
                      const float* __restrict__ filter, const float* __restrict__ dot_filter,
                      float* __restrict__ d_filter, float* __restrict__ up_filter) {
  const int64_t width = all.width, i = in.receiver[e], j = in.sender[e];
  const float *__restrict__ h = all.h + j * width, *__restrict__ dot_h = all.dot_h + j * width;
  const float* __restrict__ g = all.grad + i * width;
  float *__restrict__ d_h = all.d_h + j * width, *__restrict__ d_grad = all.d_grad + i * width;
  const float f = in.envelope[e], dot_f = all.dot_envelope[e];
  float d_f = 0.0f;
#pragma omp simd reduction(+ : d_f)
  for (int64_t c = 0; c < width; ++c) {
    const float x = filter[c], dot_x = dot_filter[c];
    const float sent = h[c] * x, dot_sent = dot_h[c] * x + h[c] * dot_x;
    d_grad[c] += dot_f * sent + f * dot_sent;
    d_h[c] += g[c] * (dot_f * x + f * dot_x);
    d_filter[c] += g[c] * (dot_f * h[c] + f * dot_h[c]);
    up_filter[c] += g[c] * f * h[c];
    d_f += g[c] * dot_sent;
  }
  if (all.d_envelope) all.d_envelope[e] = d_f;
}

template <typename T>
void neighbours_share(const Edges& in, const Neighbours& all, Work work, const Share& share,
                      const Tensor& weight, float* d_basis, Tensor& d_weight_t,
                      float* __restrict__ d_bias) {
  const int64_t width = all.width, radial = in.radial;
  // a block's rows of the basis and below them their changes, so that one product makes both
  std::vector<T> basis_room(2 * BLOCK * radial), pre_room(2 * BLOCK * width);
  std::vector<T> d_basis_room(BLOCK * radial);
  std::vector<float> rooms(4 * width);
  T *basis = basis_room.data(), *pre = pre_room.data();
  float *__restrict__ filter = rooms.data(), *__restrict__ dot_filter = filter + width;
  float *__restrict__ d_filter = dot_filter + width, *__restrict__ up_filter = d_filter + width;
  const Tensor weight_t = weight.t();
  Tensor product = at::empty_like(d_weight_t, weight.options());
  for (int64_t start = share.begin; start < share.end; start += BLOCK) {
    const int64_t size = std::min(BLOCK, share.end - start);
    basis_rows(in, &work[start], size, basis);
    changed_rows(in, all.dot_basis, &work[start], size, basis + size * radial);
    Tensor basis_view = over(basis, 2 * size, radial), pre_view = over(pre, 2 * size, width);
    Tensor d_basis_view = over(d_basis_room.data(), size, radial);
    at::mm_out(pre_view, basis_view, weight_t);
    for (int64_t b = 0; b < size; ++b) {
      T *__restrict__ row = pre + b * width, *__restrict__ dot_row = pre + (size + b) * width;
      const float* __restrict__ bias = all.bias;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        filter[c] = widen(row[c]) + bias[c];
        dot_filter[c] = widen(dot_row[c]);
        d_filter[c] = up_filter[c] = 0.0f;
      }
      for (const int64_t e : {work[start + b].edge, work[start + b].back}) {
        if (e >= 0) neighbour(in, all, e, filter, dot_filter, d_filter, up_filter);
      }
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) {
        d_bias[c] += d_filter[c];
        row[c] = narrow<T>(d_filter[c]);
        dot_row[c] = narrow<T>(up_filter[c]);
      }
    }
    add_product<T>(d_weight_t, basis_view, pre_view, product);
    at::mm_out(d_basis_view, over(pre, size, width), weight);
    give_halves(in, &work[start], size, d_basis_room.data(), d_basis);
  }
}

// Gradients of h, basis, envelope (empty if not wanted), weight, bias and grad. dot_*: what is
// given for those of `torchmd_et_neighbours_backward`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> neighbours_slopes_backward(
    const Tensor& dot_h, const Tensor& dot_basis, const Tensor& dot_envelope, const Tensor& h,
    const Tensor& basis, const Tensor& envelope, const Tensor& weight, const Tensor& bias,
    const Tensor& sender, const Tensor& receiver, const Tensor& pieces, const Tensor& grad,
    bool need_envelope) {
  const Edges in(basis, envelope, std::nullopt, sender, receiver, h.size(0));
  const int64_t threads = at::get_num_threads(), width = h.size(1);
  Tensor d_h = at::zeros_like(h), d_grad = at::zeros_like(h), d_basis = at::empty_like(basis);
  Tensor d_envelope = at::empty({need_envelope ? in.n_edges : 0, 1}, h.options());
  Tensor d_weights = at::zeros({threads, in.radial, width}, h.options());
  Tensor d_biases = at::zeros({threads, width}, h.options());
  const Work work = work_of(pieces);
  const auto shares = divide(in, work, threads);
  std::vector<Rows> h_rows, grad_rows;
  for (const Share& share : shares) {
    h_rows.emplace_back(d_h, share), grad_rows.emplace_back(d_grad, share);
  }
  auto data = [](const Tensor& x) { return x.const_data_ptr<float>(); };
  at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t t = begin; t < end; ++t) {
      const Neighbours all{data(h),
                           data(bias),
                           data(grad),
                           data(dot_h),
                           data(dot_basis),
                           data(dot_envelope),
                           h_rows[t].data,
                           grad_rows[t].data,
                           need_envelope ? d_envelope.data_ptr<float>() : nullptr,
                           width};
      Tensor d_weight_t = d_weights.select(0, t);
      auto run = [&](auto zero) {
        neighbours_share<decltype(zero)>(in, all, work, shares[t], weight,
                                         d_basis.data_ptr<float>(), d_weight_t,
                                         d_biases.data_ptr<float>() + t * width);
      };
      weight.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
    }
  });
  for (size_t t = 0; t < shares.size(); ++t) {
    h_rows[t].add_to(d_h, shares[t]), grad_rows[t].add_to(d_grad, shares[t]);
  }
  return {d_h, d_basis, d_envelope, d_weights.sum(0).t().contiguous(), d_biases.sum(0), d_grad};
}

// -- Δx = q¹ + q² ⊙ ⟨u¹, u²⟩ and Δv = vector + q³ ⊙ u³ -----------------------------------------------
// By (q¹, q², q³), (u¹, u², u³), and by what is given for Δx and Δv; `dot_out`, `dot_mix`: given
// for the first two gradients of `torchmd_et_update_backward`.
template <typename T>
void update_rows(const T* dot_out, const T* dot_mix, const T* out, const T* mix, const float* gx,
                 const float* gv, int64_t width, int64_t begin, int64_t end, T* d_out, T* d_mix,
                 float* d_x, float* d_v) {
  for (int64_t i = begin; i < end; ++i) {
    const T *__restrict__ q = out + i * 3 * width, *__restrict__ u = mix + i * 9 * width;
    const T *__restrict__ dot_q = dot_out + i * 3 * width;
    const T *__restrict__ dot_u = dot_mix + i * 9 * width;
    const float *__restrict__ x = gx + i * width, *__restrict__ v = gv + i * 3 * width;
    T *__restrict__ dq = d_out + i * 3 * width, *__restrict__ du = d_mix + i * 9 * width;
    float *__restrict__ dx = d_x + i * width, *__restrict__ dv = d_v + i * 3 * width;
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      const float q2 = widen(q[width + c]), dot_q2 = widen(dot_q[width + c]);
      const float q3 = widen(q[2 * width + c]), dot_q3 = widen(dot_q[2 * width + c]);
      const float along = x[c] * q2, dot_along = x[c] * dot_q2;
      float product = 0.0f, dot_product = 0.0f, d_q3 = 0.0f;
      for (int64_t a = 0; a < 3; ++a) {
        const int64_t at = 3 * a * width + c;
        const float u1 = widen(u[at]), u2 = widen(u[at + width]), u3 = widen(u[at + 2 * width]);
        const float dot_u1 = widen(dot_u[at]), dot_u2 = widen(dot_u[at + width]);
        const float dot_u3 = widen(dot_u[at + 2 * width]), g = v[a * width + c];
        product += u1 * u2;
        dot_product += dot_u1 * u2 + u1 * dot_u2;
        d_q3 += g * dot_u3;
        du[at] = narrow<T>(dot_along * u2 + along * dot_u2);
        du[at + width] = narrow<T>(dot_along * u1 + along * dot_u1);
        du[at + 2 * width] = narrow<T>(g * dot_q3);
        dv[a * width + c] = dot_q3 * u3 + q3 * dot_u3;
      }
      dx[c] = widen(dot_q[c]) + dot_q2 * product + q2 * dot_product;
      dq[c] = narrow<T>(0.0f);
      dq[width + c] = narrow<T>(x[c] * dot_product);
      dq[2 * width + c] = narrow<T>(d_q3);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> update_slopes_backward(
    const Tensor& dot_out, const Tensor& dot_mix, const Tensor& out, const Tensor& mix,
    const Tensor& d_x, const Tensor& d_v) {
  Tensor d_out = at::empty_like(out), d_mix = at::empty_like(mix);
  Tensor by_x = at::empty_like(d_x), by_v = at::empty_like(d_v);
  at::parallel_for(0, d_x.size(0), 64, [&](int64_t begin, int64_t end) {
    auto run = [&](auto zero) {
      using T = decltype(zero);
      update_rows(dot_out.const_data_ptr<T>(), dot_mix.const_data_ptr<T>(),
                  out.const_data_ptr<T>(), mix.const_data_ptr<T>(), d_x.const_data_ptr<float>(),
                  d_v.const_data_ptr<float>(), d_x.size(1), begin, end, d_out.data_ptr<T>(),
                  d_mix.data_ptr<T>(), by_x.data_ptr<float>(), by_v.data_ptr<float>());
    };
    out.scalar_type() == at::kBFloat16 ? run(BFloat16{}) : run(float{});
  });
  return {d_out, d_mix, by_x, by_v};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "torchmd_et_neighbours_slopes_backward(Tensor dot_h, Tensor dot_basis, Tensor "
      "dot_envelope, Tensor h, Tensor basis, Tensor envelope, Tensor weight, Tensor bias, "
      "Tensor sender, Tensor receiver, Tensor pieces, Tensor grad, bool need_envelope) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "torchmd_et_update_slopes_backward(Tensor dot_out, Tensor dot_mix, Tensor out, Tensor "
      "mix, Tensor d_x, Tensor d_v) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("torchmd_et_neighbours_slopes_backward", &neighbours_slopes_backward);
  library.impl("torchmd_et_update_slopes_backward", &update_slopes_backward);
}

}  // namespace potkit
