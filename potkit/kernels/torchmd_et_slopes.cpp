// What −∂E/∂x takes of TorchMD-Net ET's messages is `torchmd_et_backward` without gradients of
// weights; here is the backward pass of that.
//
// The gradients are linear in g and g_v, which are given for the sums x and v. What comes back to
// them, (q̇, k̇, …), is therefore a direction in which the inputs change: the scalar that is
// differentiated is g · ẋ + g_v · v̇, the change of the sums in that direction. Its derivative by g
// is ẋ itself, and those by the inputs follow from the formulas of torchmd_et_blocks.py and their
// changes, edge by edge:
//     Ḋ = silu′(W e + w) W ė,   κ̇ = k̇_j D + k_j Ḋ  (s likewise),   l̇ = Σ q̇_i κ + q_i κ̇,
//     Ȧ = silu′(l) l̇ f + silu(l) ḟ,   ẋ_i = Σ_j Ȧ s³ + A ṡ³,
//     v̇_i = Σ_j (f s¹)˙ ⊙ v_j + f s¹ ⊙ v̇_j + (f s²)˙ r/d + f s² (r/d)˙
// (f in the last line only if ``damped``). A dot is written `dot_` here, what is differentiated by
// a quantity `d_`, by its change `up_`.
#include "torchmd_et_messages.h"

namespace potkit {
namespace {

// Changes of the inputs; v: null where there are no vectors
struct Changes {
  const float *q, *k, *s, *v, *basis, *envelope, *direction;
};

// What was given for the sums, and where results go. d_envelope, d_direction: null where nobody
// asks.
struct Results {
  const float *scalar, *vector;  // given for x and v
  float *dq, *dk, *ds, *dv, *d_scalar, *d_vector, *d_envelope, *d_direction;
};

// The filters of an edge, their changes, and the derivatives by both (added to).
struct Filters {
  const float *d, *dot_d;
  float *dd, *up_d;
};

// How an edge's envelope and direction change.
struct Turn {
  float f, scale, x, y, z;
};

template <bool Carried, int64_t W, typename T>
struct Second {
  const Inputs<T>& in;
  const Changes& dots;
  const Results& out;
  float* room;  // [4H]

  // The attention: κ, l, A and x. Returns the derivative by the envelope.
  float scalars(const Way& w, const Turn& turn, const Filters& filters, const float* logits) const {
    const int64_t width = in.width, heads = in.heads, per_head = W ? W : width / heads;
    const T *__restrict__ q = in.q + w.i * width, *__restrict__ key = in.k + w.j * width;
    const T* __restrict__ s = in.s + w.j * 3 * width;
    const float* __restrict__ dot_q = dots.q + w.i * width;
    const float* __restrict__ dot_k = dots.k + w.j * width;
    const float* __restrict__ dot_s = dots.s + w.j * 3 * width;
    const float *__restrict__ d = filters.d, *__restrict__ dot_d = filters.dot_d;
    const float* __restrict__ g = out.scalar + w.i * width;
    float *__restrict__ attention = room, *__restrict__ dot_attention = room + heads;
    float *__restrict__ d_logit = room + 2 * heads, *__restrict__ up_logit = room + 3 * heads;
    float d_f = 0.0f;
    for (int64_t h = 0; h < heads; ++h) {
      const float l = logits[h], sigma = sigmoid(l), slope = silu_slope(l, sigma);
      const float dot_l = over_head<W>(h, per_head, [&](int64_t c) {
        const float k = widen(key[c]), kappa = k * d[c];
        return dot_q[c] * kappa + widen(q[c]) * (dot_k[c] * d[c] + k * dot_d[c]);
      });
      const float up_a = over_head<W>(h, per_head, [&](int64_t c) {  // by Ȧ
        return g[c] * (widen(s[c]) * d[width + c]);
      });
      const float d_a = over_head<W>(h, per_head, [&](int64_t c) {  // by A
        return g[c] * (dot_s[c] * d[width + c] + widen(s[c]) * dot_d[width + c]);
      });
      attention[h] = l * sigma * w.f;
      dot_attention[h] = slope * dot_l * w.f + l * sigma * turn.f;
      up_logit[h] = up_a * slope * w.f;
      d_logit[h] = up_a * (silu_bend(l, sigma) * dot_l * w.f + slope * turn.f) + d_a * slope * w.f;
      d_f += up_a * slope * dot_l + d_a * l * sigma;
    }
    float *__restrict__ dq = out.dq + w.i * width, *__restrict__ dk = out.dk + w.j * width;
    float* __restrict__ ds = out.ds + w.j * 3 * width;
    float* __restrict__ dx = out.d_scalar + w.i * width;
    float *__restrict__ dd = filters.dd, *__restrict__ up_d = filters.up_d;
    for (int64_t h = 0; h < heads; ++h) {
      const float a = attention[h], dot_a = dot_attention[h], d_l = d_logit[h], up_l = up_logit[h];
#pragma omp simd
      for (int64_t c = h * per_head; c < (h + 1) * per_head; ++c) {
        const float query = widen(q[c]), k = widen(key[c]), x = widen(s[c]);
        const float dk_c = d[c], dot_dk = dot_d[c], ds_c = d[width + c], dot_ds = dot_d[width + c];
        // l = Σ q κ
        dq[c] += d_l * (k * dk_c) + up_l * (dot_k[c] * dk_c + k * dot_dk);
        const float d_kappa = d_l * query + up_l * dot_q[c], up_kappa = up_l * query;
        dk[c] += d_kappa * dk_c + up_kappa * dot_dk;
        dd[c] += d_kappa * k + up_kappa * dot_k[c];
        up_d[c] += up_kappa * k;
        // x = Σ A s³
        dx[c] += dot_a * (x * ds_c) + a * (dot_s[c] * ds_c + x * dot_ds);
        const float d_s3 = dot_a * g[c], up_s3 = a * g[c];
        ds[c] += d_s3 * ds_c + up_s3 * dot_ds;
        dd[width + c] += d_s3 * x + up_s3 * dot_s[c];
        up_d[width + c] += up_s3 * x;
      }
    }
    return d_f;
  }

  // The vectors. Adds to the derivatives by ``scale`` and by the direction.
  void vectors(const Way& w, const Turn& turn, const Filters& filters, Turn& by) const {
    const int64_t width = in.width;
    const T* __restrict__ s = in.s + w.j * 3 * width + width;  // s¹ and s²
    const float* __restrict__ dot_s = dots.s + w.j * 3 * width + width;
    const float* __restrict__ d = filters.d + 2 * width;
    const float* __restrict__ dot_d = filters.dot_d + 2 * width;
    const float* __restrict__ g = out.vector + w.i * 3 * width;
    const float* __restrict__ v = Carried ? in.v + w.j * 3 * width : nullptr;
    const float* __restrict__ dot_v = Carried ? dots.v + w.j * 3 * width : nullptr;
    float* __restrict__ dv = Carried ? out.dv + w.j * 3 * width : nullptr;
    float* __restrict__ ds = out.ds + w.j * 3 * width + width;
    float* __restrict__ dg = out.d_vector + w.i * 3 * width;
    float *__restrict__ dd = filters.dd + 2 * width, *__restrict__ up_d = filters.up_d + 2 * width;
    const float f = w.scale, dot_f = turn.scale;
    float d_scale = 0.0f, d_x = 0.0f, d_y = 0.0f, d_z = 0.0f;
#pragma omp simd reduction(+ : d_scale, d_x, d_y, d_z)
    for (int64_t c = 0; c < width; ++c) {
      const float gx = g[c], gy = g[width + c], gz = g[2 * width + c];
      // s² r/d
      const float s2 = widen(s[width + c]), dot_s2 = dot_s[width + c];
      const float d2 = d[width + c], dot_d2 = dot_d[width + c];
      const float m2 = s2 * d2, dot_m2 = dot_s2 * d2 + s2 * dot_d2;
      const float along = gx * w.x + gy * w.y + gz * w.z;
      const float dot_along = gx * turn.x + gy * turn.y + gz * turn.z;
      const float d_m2 = dot_f * along + f * dot_along, up_m2 = f * along;
      ds[width + c] += d_m2 * d2 + up_m2 * dot_d2;
      dd[width + c] += d_m2 * s2 + up_m2 * dot_s2;
      up_d[width + c] += up_m2 * s2;
      const float turned = f * m2, dot_turned = dot_f * m2 + f * dot_m2;
      d_scale += dot_m2 * along + m2 * dot_along;
      d_x += dot_turned * gx, d_y += dot_turned * gy, d_z += dot_turned * gz;
      float x = dot_turned * w.x + turned * turn.x;
      float y = dot_turned * w.y + turned * turn.y;
      float z = dot_turned * w.z + turned * turn.z;
      if constexpr (Carried) {  // s¹ ⊙ v_j
        const float s1 = widen(s[c]), dot_s1 = dot_s[c], d1 = d[c], dot_d1 = dot_d[c];
        const float m1 = s1 * d1, dot_m1 = dot_s1 * d1 + s1 * dot_d1;
        const float vx = v[c], vy = v[width + c], vz = v[2 * width + c];
        const float ux = dot_v[c], uy = dot_v[width + c], uz = dot_v[2 * width + c];
        const float bare = gx * vx + gy * vy + gz * vz, dot_bare = gx * ux + gy * uy + gz * uz;
        const float d_m1 = dot_f * bare + f * dot_bare, up_m1 = f * bare;
        ds[c] += d_m1 * d1 + up_m1 * dot_d1;
        dd[c] += d_m1 * s1 + up_m1 * dot_s1;
        up_d[c] += up_m1 * s1;
        const float carried = f * m1, dot_carried = dot_f * m1 + f * dot_m1;
        d_scale += dot_m1 * bare + m1 * dot_bare;
        dv[c] += dot_carried * gx;
        dv[width + c] += dot_carried * gy;
        dv[2 * width + c] += dot_carried * gz;
        x += dot_carried * vx + carried * ux;
        y += dot_carried * vy + carried * uy;
        z += dot_carried * vz + carried * uz;
      }
      dg[c] += x;
      dg[width + c] += y;
      dg[2 * width + c] += z;
    }
    by.scale += d_scale, by.x += d_x, by.y += d_y, by.z += d_z;
  }

  Turn turn_of(int64_t e) const {
    const float *r = dots.direction + 3 * e, f = dots.envelope[e];
    return {f, in.damped ? f : 0.0f, r[0], r[1], r[2]};
  }

  void edge(int64_t e, const Filters& filters, const float* logits) const {
    const Way w = way(in, e);
    const Turn turn = turn_of(e);
    Turn by{};
    by.f = scalars(w, turn, filters, logits + e * in.heads);
    vectors(w, turn, filters, by);
    if (out.d_envelope) out.d_envelope[e] = by.f + (in.damped ? by.scale : 0.0f);
    if (out.d_direction) {
      float* to = out.d_direction + 3 * e;
      to[0] = by.x, to[1] = by.y, to[2] = by.z;
    }
  }

  void itself(int64_t i, const Filters& filters, const float* own_logits) const {
    Turn by{};
    scalars(to_itself(i), Turn{}, filters, own_logits + i * in.heads);
    vectors(to_itself(i), Turn{}, filters, by);
  }
};

template <bool Carried, int64_t W, typename T>
void second_share(const Inputs<T>& in, const Changes& dots, Work work, const Share& share,
                  const Tensor& weight, const float* logits, const Results& out, float* d_basis,
                  Tensor& d_weight_t, float* __restrict__ d_bias) {
  const int64_t filters = 4 * in.width, radial = in.radial;
  // a block's rows of the basis and below them their changes, so that one product makes both
  std::vector<T> basis_room(2 * block<T> * radial), pre_room(2 * block<T> * filters);
  std::vector<T> d_basis_room(block<T> * radial);
  std::vector<float> rooms(6 * filters), head_room(4 * in.heads);
  T *basis = basis_room.data(), *pre = pre_room.data();
  float *__restrict__ d = rooms.data(), *__restrict__ dot_d = d + filters;
  float *__restrict__ dd = dot_d + filters, *__restrict__ up_d = dd + filters;
  float *__restrict__ slope = up_d + filters, *__restrict__ bend = slope + filters;
  const Filters of_edge{d, dot_d, dd, up_d};
  const Second<Carried, W, T> second{in, dots, out, head_room.data()};
  const Tensor weight_t = weight.t();
  Tensor product;
  if constexpr (!std::is_same_v<T, float>) product = at::empty_like(d_weight_t, weight.options());
  for (int64_t start = share.begin; start < share.end; start += block<T>) {
    const int64_t size = std::min(block<T>, share.end - start);
    basis_rows(in, &work[start], size, basis);
    changed_rows(in, dots.basis, &work[start], size, basis + size * radial);
    Tensor basis_view = over(basis, 2 * size, radial), pre_view = over(pre, 2 * size, filters);
    Tensor d_basis_view = over(d_basis_room.data(), size, radial);
    at::mm_out(pre_view, basis_view, weight_t);
    for (int64_t b = 0; b < size; ++b) {
      const Piece piece = work[start + b];
      T *__restrict__ row = pre + b * filters, *__restrict__ dot_row = pre + (size + b) * filters;
      const float* __restrict__ bias = in.bias;
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) {
        const float x = widen(row[c]) + bias[c], sigma = sigmoid(x), rate = widen(dot_row[c]);
        d[c] = x * sigma;
        slope[c] = silu_slope(x, sigma);
        bend[c] = silu_bend(x, sigma) * rate;
        dot_d[c] = slope[c] * rate;
        dd[c] = up_d[c] = 0.0f;
      }
      second.edge(piece.edge, of_edge, logits);
      if (piece.back >= 0) second.edge(piece.back, of_edge, logits);
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) {
        const float x = dd[c] * slope[c] + up_d[c] * bend[c];
        d_bias[c] += x;
        row[c] = narrow<T>(x);
        dot_row[c] = narrow<T>(up_d[c] * slope[c]);
      }
    }
    add_product<T>(d_weight_t, basis_view, pre_view, product);
    at::mm_out(d_basis_view, over(pre, size, filters), weight);
    give_halves(in, &work[start], size, d_basis_room.data(), d_basis);
  }
}

// Gradients of q, k, s, v, basis, envelope, direction, weight, bias, own, d_scalar and d_vector
// (empty for v, envelope, direction where there are none). dot_*: what is given for the results of
// `torchmd_et_backward`.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
           Tensor>
slopes_backward(
    const Tensor& dot_q, const Tensor& dot_k, const Tensor& dot_s,
    const std::optional<Tensor>& dot_v, const Tensor& dot_basis, const Tensor& dot_envelope,
    const Tensor& dot_direction, const Tensor& q, const Tensor& k, const Tensor& s,
    const std::optional<Tensor>& v, const Tensor& basis, const Tensor& envelope,
    const Tensor& direction, const Tensor& weight, const Tensor& bias, const Tensor& own,
    const Tensor& sender, const Tensor& receiver, const Tensor& pieces, int64_t heads, bool damped,
    const Tensor& logits, const Tensor& own_logits, const Tensor& d_scalar, const Tensor& d_vector,
    bool need_envelope, bool need_direction) {
  const auto like = basis.options();
  const int64_t n = q.size(0), f = q.size(1), n_edges = sender.size(0);
  const int64_t threads = at::get_num_threads();
  Tensor dq = at::zeros({n, f}, like), dk = at::zeros({n, f}, like);
  Tensor ds = at::zeros({n, 3 * f}, like), dv = at::zeros({v ? n : 0, 3, f}, like);
  Tensor d_x = at::zeros({n, f}, like), d_v = at::zeros({n, 3, f}, like);
  Tensor d_basis = at::empty_like(basis);
  Tensor d_envelope = at::empty({need_envelope ? n_edges : 0, 1}, like);
  Tensor d_direction = at::empty({need_direction ? n_edges : 0, 3}, like);
  Tensor d_own = at::zeros({threads, 4 * f}, like), d_biases = at::zeros({threads, 4 * f}, like);
  std::vector<Tensor> d_weights;
  for (int64_t t = 0; t < threads; ++t) {
    d_weights.push_back(at::zeros({basis.size(1), 4 * f}, like));
  }
  const Arguments arguments{q,      k,    s,   v,      basis,    envelope, direction,
                            weight, bias, own, sender, receiver, heads,    damped};
  arguments.typed([&](const auto& inputs) {
    with_constants(inputs, [&](const auto& in, auto carried, auto per_head) {
      constexpr bool Carried = decltype(carried)::value;
      constexpr int64_t W = decltype(per_head)::value;
      using T = std::remove_cvref_t<decltype(*in.q)>;
      auto data = [](const Tensor& x) { return x.const_data_ptr<float>(); };
      const Changes dots{data(dot_q),
                         data(dot_k),
                         data(dot_s),
                         Carried ? data(*dot_v) : nullptr,
                         data(dot_basis),
                         data(dot_envelope),
                         data(dot_direction)};
      const float *l = data(logits), *o = data(own_logits);
      const Results all{data(d_scalar),
                        data(d_vector),
                        dq.data_ptr<float>(),
                        dk.data_ptr<float>(),
                        ds.data_ptr<float>(),
                        Carried ? dv.data_ptr<float>() : nullptr,
                        d_x.data_ptr<float>(),
                        d_v.data_ptr<float>(),
                        need_envelope ? d_envelope.data_ptr<float>() : nullptr,
                        need_direction ? d_direction.data_ptr<float>() : nullptr};
      at::parallel_for(0, threads, 1, [&](int64_t first, int64_t past) {
        const std::vector<float> still(4 * f, 0.0f);
        std::vector<float> nobody(4 * f), room(4 * heads);
        for (int64_t t = first; t < past; ++t) {
          const Filters own_filters{in.own, still.data(), d_own.data_ptr<float>() + t * 4 * f,
                                    nobody.data()};
          const Second<Carried, W, T> second{in, dots, all, room.data()};
          const int64_t begin = n * t / threads, end = n * (t + 1) / threads;
          for (int64_t i = begin; i < end; ++i) second.itself(i, own_filters, o);
        }
      });
      const Work work = work_of(pieces);
      const auto shares = divide(in, work, threads);
      const std::vector<Tensor*> sums{&dq, &dk, &ds, &d_x, &d_v, &dv};
      std::vector<std::vector<Rows>> rows(shares.size());
      for (size_t t = 0; t < shares.size(); ++t) {
        for (const Tensor* sum : sums) {
          if (sum != &dv || Carried) rows[t].emplace_back(*sum, shares[t]);
        }
      }
      at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
        at::AutoDispatchBelowADInplaceOrView guard;
        for (int64_t t = begin; t < end; ++t) {
          Results out = all;
          out.dq = rows[t][0].data, out.dk = rows[t][1].data, out.ds = rows[t][2].data;
          out.d_scalar = rows[t][3].data, out.d_vector = rows[t][4].data;
          out.dv = Carried ? rows[t][5].data : nullptr;
          second_share<Carried, W>(in, dots, work, shares[t], weight, l, out,
                                   d_basis.data_ptr<float>(), d_weights[t],
                                   d_biases.data_ptr<float>() + t * 4 * f);
        }
      });
      for (size_t t = 0; t < shares.size(); ++t) {
        for (size_t k = 0; k < rows[t].size(); ++k) rows[t][k].add_to(*sums[k], shares[t]);
      }
    });
  });
  for (int64_t t = 1; t < threads; ++t) d_weights[0].add_(d_weights[t]);
  const Tensor d_weight = d_weights[0].t().contiguous();
  const Tensor d_bias = d_biases.sum(0), own_total = d_own.sum(0, true);
  return {dq,          dk,       ds,     dv,        d_basis, d_envelope,
          d_direction, d_weight, d_bias, own_total, d_x,     d_v};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "torchmd_et_slopes_backward(Tensor dot_q, Tensor dot_k, Tensor dot_s, Tensor? dot_v, "
      "Tensor dot_basis, Tensor dot_envelope, Tensor dot_direction, Tensor q, Tensor k, "
      "Tensor s, Tensor? v, Tensor basis, Tensor envelope, Tensor direction, Tensor weight, "
      "Tensor bias, Tensor own, Tensor sender, Tensor receiver, Tensor pieces, int heads, "
      "bool damped, Tensor logits, Tensor own_logits, Tensor d_scalar, Tensor d_vector, "
      "bool need_envelope, bool need_direction) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("torchmd_et_slopes_backward", &slopes_backward);
}

}  // namespace potkit
