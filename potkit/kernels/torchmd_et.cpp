// The messages of TorchMD-Net ET; formulas, names and layout of the arrays are those of torchmd_et_blocks.py.
#include "torchmd_et_messages.h"

namespace potkit {
namespace {

// What a message adds to the sums of its receiver, given its filters d. W: channels of a head, 0 if known at run time only.
// room: [H], here and below [2H].
template <bool Carried, int64_t W, typename T>
inline void forward_way(const Inputs<T>& in, const Way& w, const float* __restrict__ d, float* scalar, float* vector, float* logits,
                        float* __restrict__ room) {
  const int64_t width = in.width, per_head = W ? W : width / in.heads;
  const T *__restrict__ q = in.q + w.i * width, *__restrict__ key = in.k + w.j * width, *__restrict__ s = in.s + w.j * 3 * width;
  float *__restrict__ sum = scalar + w.i * width, *__restrict__ vectors = vector + w.i * 3 * width;
  for (int64_t h = 0; h < in.heads; ++h) {
    logits[h] = over_head<W>(h, per_head, [&](int64_t c) { return widen(q[c]) * (widen(key[c]) * d[c]); });
  }
#pragma omp simd
  for (int64_t h = 0; h < in.heads; ++h) room[h] = silu(logits[h]) * w.f;
  for (int64_t h = 0; h < in.heads; ++h) {
    const float attention = room[h];
#pragma omp simd
    for (int64_t c = h * per_head; c < (h + 1) * per_head; ++c) sum[c] += attention * (widen(s[c]) * d[width + c]);
  }
  const float *__restrict__ v = in.v + w.j * 3 * width, x = w.x * w.scale, y = w.y * w.scale, z = w.z * w.scale;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const float s2 = widen(s[2 * width + c]) * d[3 * width + c];
    float a = s2 * x, b = s2 * y, g = s2 * z;
    if constexpr (Carried) {
      const float s1 = widen(s[width + c]) * d[2 * width + c] * w.scale;
      a += s1 * v[c];
      b += s1 * v[width + c];
      g += s1 * v[2 * width + c];
    }
    vectors[c] += a;
    vectors[width + c] += b;
    vectors[2 * width + c] += g;
  }
}

template <bool Carried, int64_t W, typename T>
void forward_share(const Inputs<T>& in, Work work, const Share& share, const Tensor& weight_t, float* scalar,
                   float* vector, float* logits) {
  const int64_t filters = 4 * in.width;
  std::vector<T> basis_room(block<T> * in.radial), pre_room(block<T> * filters);
  std::vector<float> d_room(filters), head_room(in.heads);
  T *basis = basis_room.data(), *pre = pre_room.data();
  for (int64_t start = share.begin; start < share.end; start += block<T>) {
    const int64_t size = std::min(block<T>, share.end - start);
    basis_rows(in, &work[start], size, basis);
    Tensor pre_view = over(pre, size, filters);
    at::mm_out(pre_view, over(basis, size, in.radial), weight_t);
    for (int64_t b = 0; b < size; ++b) {
      const T* __restrict__ row = pre + b * filters;
      float* __restrict__ d = d_room.data();
      const float* __restrict__ bias = in.bias;
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) d[c] = silu(widen(row[c]) + bias[c]);
      for (const int64_t e : {work[start + b].edge, work[start + b].back}) {
        if (e >= 0) forward_way<Carried, W>(in, way(in, e), d, scalar, vector, logits + e * in.heads, head_room.data());
      }
    }
  }
}

// Sums over senders, themselves included: [N, F] and [N, 3, F]; and the logits of all edges and of all atoms with themselves.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& q, const Tensor& k, const Tensor& s, const std::optional<Tensor>& v, const Tensor& basis, const Tensor& envelope,
    const Tensor& direction, const Tensor& weight, const Tensor& bias, const Tensor& own, const Tensor& sender, const Tensor& receiver,
    const Tensor& pieces, int64_t heads, bool damped) {
  const auto like = basis.options();
  Tensor scalar = at::empty({q.size(0), q.size(1)}, like), vector = at::empty({q.size(0), 3, q.size(1)}, like);
  Tensor logits = at::empty({sender.size(0), heads}, like), own_logits = at::empty({q.size(0), heads}, like);
  Arguments{q, k, s, v, basis, envelope, direction, weight, bias, own, sender, receiver, heads, damped}.typed([&](const auto& inputs) {
    with_constants(inputs, [&](const auto& in, auto carried, auto per_head) {
      constexpr bool Carried = decltype(carried)::value;
      constexpr int64_t W = decltype(per_head)::value;
      float *x = scalar.data_ptr<float>(), *y = vector.data_ptr<float>(), *l = logits.data_ptr<float>(), *o = own_logits.data_ptr<float>();
      at::parallel_for(0, in.n_atoms, 64, [&](int64_t begin, int64_t end) {
        std::fill(x + begin * in.width, x + end * in.width, 0.0f);
        std::fill(y + begin * 3 * in.width, y + end * 3 * in.width, 0.0f);
        std::vector<float> room(heads);
        for (int64_t i = begin; i < end; ++i) forward_way<Carried, W>(in, to_itself(i), in.own, x, y, o + i * heads, room.data());
      });
      const Work work = work_of(pieces);
      const auto shares = divide(in, work, at::get_num_threads());
      std::vector<Rows> scalars, vectors;
      for (const Share& share : shares) scalars.emplace_back(scalar, share), vectors.emplace_back(vector, share);
      const Tensor weight_t = weight.t();
      at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
        at::AutoDispatchBelowADInplaceOrView guard;
        for (int64_t t = begin; t < end; ++t) {
          forward_share<Carried, W>(in, work, shares[t], weight_t, scalars[t].data, vectors[t].data, l);
        }
      });
      for (size_t t = 0; t < shares.size(); ++t) scalars[t].add_to(scalar, shares[t]), vectors[t].add_to(vector, shares[t]);
    });
  });
  return {scalar, vector, logits, own_logits};
}

// Upstream gradients and where results go; d_envelope and d_direction: null where nobody asks.
struct Grads {
  const float *scalar, *vector;
  float *dq, *dk, *ds, *dv, *d_envelope, *d_direction;
};
struct Bend {  // of f_c and of r/d
  float f = 0.0f, x = 0.0f, y = 0.0f, z = 0.0f;
};

// The gradient of the filters goes to dd (added to it if Add), all others to their sums.
template <bool Carried, int64_t W, bool Geometry, bool Add, typename T>
inline Bend backward_way(const Inputs<T>& in, const Way& w, const float* __restrict__ d, float* __restrict__ dd, const float* logits,
                         const Grads& out, float* __restrict__ room) {
  const int64_t width = in.width, per_head = W ? W : width / in.heads;
  const T *__restrict__ q = in.q + w.i * width, *__restrict__ key = in.k + w.j * width, *__restrict__ s = in.s + w.j * 3 * width;
  const float *__restrict__ g = out.scalar + w.i * width, *__restrict__ gv = out.vector + w.i * 3 * width;
  float *__restrict__ dq = out.dq + w.i * width, *__restrict__ dk = out.dk + w.j * width, *__restrict__ ds = out.ds + w.j * 3 * width;
  auto put = [dd](int64_t c, float x) { dd[c] = Add ? dd[c] + x : x; };
  Bend bend;
  float *__restrict__ attentions = room, *__restrict__ d_logits = room + in.heads;
  // x_i = Σ A s³ with A = silu(l) f_c
  for (int64_t h = 0; h < in.heads; ++h) {
    attentions[h] = over_head<W>(h, per_head, [&](int64_t c) { return g[c] * (widen(s[c]) * d[width + c]); });
  }
  float d_f = 0.0f;
#pragma omp simd reduction(+ : d_f)
  for (int64_t h = 0; h < in.heads; ++h) {
    const float l = logits[h], slope = sigmoid(l), d_attention = attentions[h];
    attentions[h] = l * slope * w.f;
    d_logits[h] = d_attention * w.f * silu_slope(l, slope);
    if constexpr (Geometry) d_f += d_attention * l * slope;
  }
  bend.f = d_f;
  // l = Σ q_i κ
  for (int64_t h = 0; h < in.heads; ++h) {
    const int64_t from = h * per_head;
    const float attention = attentions[h], d_logit = d_logits[h];
#pragma omp simd
    for (int64_t c = from; c < from + per_head; ++c) {
      const float k = widen(key[c]), filter = d[c], along = d_logit * widen(q[c]), x = attention * g[c];
      dq[c] += d_logit * (k * filter);
      dk[c] += along * filter;
      put(c, along * k);
      ds[c] += x * d[width + c];
      put(width + c, x * widen(s[c]));
    }
  }
  // v_i = Σ s¹ v_j + s² r/d
  const float *__restrict__ v = in.v + w.j * 3 * width, x = w.x * w.scale, y = w.y * w.scale, z = w.z * w.scale;
  float* __restrict__ dv = out.dv + w.j * 3 * width;
  float d_x = 0.0f, d_y = 0.0f, d_z = 0.0f, d_s1 = 0.0f;
#pragma omp simd reduction(+ : d_x, d_y, d_z, d_s1)
  for (int64_t c = 0; c < width; ++c) {
    const float gx = gv[c], gy = gv[width + c], gz = gv[2 * width + c], along = gx * x + gy * y + gz * z;
    const float s1 = widen(s[width + c]), s2 = widen(s[2 * width + c]), d1 = d[2 * width + c], d2 = d[3 * width + c];
    ds[2 * width + c] += along * d2;
    put(3 * width + c, along * s2);
    if constexpr (Carried) {
      const float bare = gx * v[c] + gy * v[width + c] + gz * v[2 * width + c], carried = bare * w.scale, part = s1 * d1 * w.scale;
      ds[width + c] += carried * d1;
      put(2 * width + c, carried * s1);
      dv[c] += gx * part;
      dv[width + c] += gy * part;
      dv[2 * width + c] += gz * part;
      if constexpr (Geometry) d_s1 += bare * s1 * d1;
    } else {
      put(2 * width + c, 0.0f);
    }
    if constexpr (Geometry) {
      const float m = s2 * d2;
      d_x += gx * m;
      d_y += gy * m;
      d_z += gz * m;
    }
  }
  if constexpr (Geometry) {
    if (in.damped) bend.f += d_s1 + d_x * w.x + d_y * w.y + d_z * w.z;
    bend.x = d_x * w.scale, bend.y = d_y * w.scale, bend.z = d_z * w.scale;
  }
  return bend;
}

template <bool Carried, int64_t W, bool Geometry, bool Add, typename T>
inline void backward_edge(const Inputs<T>& in, int64_t e, const float* d, float* dd, const float* logits, const Grads& out,
                          float* room) {
  const Bend bend = backward_way<Carried, W, Geometry, Add>(in, way(in, e), d, dd, logits + e * in.heads, out, room);
  if constexpr (Geometry) {
    if (out.d_envelope) out.d_envelope[e] = bend.f;
    if (out.d_direction) out.d_direction[3 * e] = bend.x, out.d_direction[3 * e + 1] = bend.y, out.d_direction[3 * e + 2] = bend.z;
  }
}

// d_weight_t and d_bias: no number is in them where the weights' gradients are not wanted
template <bool Carried, int64_t W, bool Geometry, typename T>
void backward_share(const Inputs<T>& in, Work work, const Share& share, const Tensor& weight, const float* logits,
                    const Grads& out, float* d_basis, Tensor& d_weight_t, float* __restrict__ d_bias) {
  const bool need_weights = d_weight_t.numel() > 0;
  const int64_t filters = 4 * in.width;
  std::vector<T> basis_room(block<T> * in.radial), pre_room(block<T> * filters), d_basis_room(block<T> * in.radial);
  std::vector<float> d_room(filters), slope_room(filters), dd_room(filters), head_room(2 * in.heads);
  T *basis = basis_room.data(), *pre = pre_room.data();
  float *__restrict__ d = d_room.data(), *__restrict__ slope = slope_room.data(), *__restrict__ dd = dd_room.data();
  const Tensor weight_t = weight.t();
  Tensor product = at::empty(std::is_same_v<T, float> ? at::IntArrayRef{0} : d_weight_t.sizes(), weight.options());
  for (int64_t start = share.begin; start < share.end; start += block<T>) {
    const int64_t size = std::min(block<T>, share.end - start);
    basis_rows(in, &work[start], size, basis);
    Tensor basis_view = over(basis, size, in.radial), pre_view = over(pre, size, filters);
    Tensor d_basis_view = over(d_basis_room.data(), size, in.radial);
    at::mm_out(pre_view, basis_view, weight_t);
    for (int64_t b = 0; b < size; ++b) {
      const Piece piece = work[start + b];
      T* __restrict__ row = pre + b * filters;
      const float* __restrict__ bias = in.bias;
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) {
        const float x = widen(row[c]) + bias[c], s = sigmoid(x);
        d[c] = x * s;
        slope[c] = silu_slope(x, s);
      }
      backward_edge<Carried, W, Geometry, false>(in, piece.edge, d, dd, logits, out, head_room.data());
      if (piece.back >= 0) backward_edge<Carried, W, Geometry, true>(in, piece.back, d, dd, logits, out, head_room.data());
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) row[c] = narrow<T>(dd[c] *= slope[c]);
      if (!need_weights) continue;
#pragma omp simd
      for (int64_t c = 0; c < filters; ++c) d_bias[c] += dd[c];
    }
    if (need_weights) add_product<T>(d_weight_t, basis_view, pre_view, product);
    at::mm_out(d_basis_view, pre_view, weight);
    give_halves(in, &work[start], size, d_basis_room.data(), d_basis);
  }
}

// Gradients of q, k, s, v, basis, envelope, direction, weight, bias and own (empty for v, envelope,
// direction and weight where there are none; that of bias is zero where that of weight is empty).
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& q, const Tensor& k, const Tensor& s, const std::optional<Tensor>& v, const Tensor& basis, const Tensor& envelope,
    const Tensor& direction, const Tensor& weight, const Tensor& bias, const Tensor& own, const Tensor& sender, const Tensor& receiver,
    const Tensor& pieces, int64_t heads, bool damped, const Tensor& logits, const Tensor& own_logits, const Tensor& d_scalar,
    const Tensor& d_vector, bool need_envelope, bool need_direction, bool need_weights) {
  const auto like = basis.options();
  const int64_t n = q.size(0), f = q.size(1), n_edges = sender.size(0);
  Tensor dq = at::empty({n, f}, like), dk = at::empty({n, f}, like), ds = at::empty({n, 3 * f}, like);
  Tensor dv = at::empty({v ? n : 0, 3, f}, like), d_basis = at::empty_like(basis);
  Tensor d_envelope = at::empty({need_envelope ? n_edges : 0, 1}, like), d_direction = at::empty({need_direction ? n_edges : 0, 3}, like);
  const int64_t threads = at::get_num_threads();
  Tensor d_own = at::zeros({threads, 4 * f}, like), d_biases = at::zeros({threads, 4 * f}, like);
  std::vector<Tensor> d_weights;
  const int64_t rows = need_weights ? basis.size(1) : 0;
  for (int64_t t = 0; t < threads; ++t) d_weights.push_back(at::zeros({rows, 4 * f}, like));
  Arguments{q, k, s, v, basis, envelope, direction, weight, bias, own, sender, receiver, heads, damped}.typed([&](const auto& inputs) {
    with_constants(inputs, [&](const auto& in, auto carried, auto per_head) {
      constexpr bool Carried = decltype(carried)::value;
      constexpr int64_t W = decltype(per_head)::value;
      const float *l = logits.const_data_ptr<float>(), *o = own_logits.const_data_ptr<float>();
      const Grads all{d_scalar.const_data_ptr<float>(), d_vector.const_data_ptr<float>(), dq.data_ptr<float>(), dk.data_ptr<float>(),
                      ds.data_ptr<float>(), Carried ? dv.data_ptr<float>() : nullptr,
                      need_envelope ? d_envelope.data_ptr<float>() : nullptr,
                      need_direction ? d_direction.data_ptr<float>() : nullptr};
      at::parallel_for(0, threads, 1, [&](int64_t first, int64_t past) {
        for (int64_t t = first; t < past; ++t) {
          float* dd = d_own.data_ptr<float>() + t * 4 * f;
          const int64_t begin = n * t / threads, end = n * (t + 1) / threads;
          std::fill(all.dq + begin * f, all.dq + end * f, 0.0f), std::fill(all.dk + begin * f, all.dk + end * f, 0.0f);
          std::fill(all.ds + begin * 3 * f, all.ds + end * 3 * f, 0.0f);
          if (Carried) std::fill(all.dv + begin * 3 * f, all.dv + end * 3 * f, 0.0f);
          std::vector<float> room(2 * heads);
          for (int64_t i = begin; i < end; ++i) {
            backward_way<Carried, W, false, true>(in, to_itself(i), in.own, dd, o + i * heads, all, room.data());
          }
        }
      });
      const Work work = work_of(pieces);
      const auto shares = divide(in, work, threads);
      std::vector<Rows> q_rows, k_rows, s_rows, v_rows;
      for (const Share& share : shares) {
        q_rows.emplace_back(dq, share), k_rows.emplace_back(dk, share), s_rows.emplace_back(ds, share);
        if (Carried) v_rows.emplace_back(dv, share);
      }
      at::parallel_for(0, static_cast<int64_t>(shares.size()), 1, [&](int64_t begin, int64_t end) {
        at::AutoDispatchBelowADInplaceOrView guard;
        for (int64_t t = begin; t < end; ++t) {
          Grads out = all;
          out.dq = q_rows[t].data, out.dk = k_rows[t].data, out.ds = s_rows[t].data, out.dv = Carried ? v_rows[t].data : nullptr;
          auto run = [&](auto geometry) {
            backward_share<Carried, W, decltype(geometry)::value>(in, work, shares[t], weight, l, out, d_basis.data_ptr<float>(),
                                                                  d_weights[t], d_biases.data_ptr<float>() + t * 4 * f);
          };
          if (need_envelope || need_direction) run(std::true_type{});
          else run(std::false_type{});
        }
      });
      for (size_t t = 0; t < shares.size(); ++t) {
        q_rows[t].add_to(dq, shares[t]), k_rows[t].add_to(dk, shares[t]), s_rows[t].add_to(ds, shares[t]);
        if (Carried) v_rows[t].add_to(dv, shares[t]);
      }
    });
  });
  for (int64_t t = 1; t < threads; ++t) d_weights[0].add_(d_weights[t]);
  return {dq, dk, ds, dv, d_basis, d_envelope, d_direction, d_weights[0].t().contiguous(), d_biases.sum(0), d_own.sum(0, true)};
}

// All pieces of work, and rows of −1 after them: [E, 2]
Tensor all_pieces(const Tensor& basis, const Tensor& direction, const Tensor& sender,
                  const Tensor& receiver, int64_t n_atoms) {
  const auto found = pieces(Edges(basis, std::nullopt, direction, sender, receiver, n_atoms));
  Tensor out = at::full({sender.size(0), 2}, -1, sender.options());
  std::memcpy(out.data_ptr<int64_t>(), found.data(), found.size() * sizeof(Piece));
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(potkit, library) {
  library.def(
      "torchmd_et_pieces(Tensor basis, Tensor direction, Tensor sender, Tensor receiver, "
      "SymInt n_atoms) -> Tensor");
  library.def(
      "torchmd_et_forward(Tensor q, Tensor k, Tensor s, Tensor? v, Tensor basis, Tensor "
      "envelope, Tensor direction, Tensor weight, Tensor bias, Tensor own, Tensor sender, "
      "Tensor receiver, Tensor pieces, int heads, bool damped) -> (Tensor, Tensor, Tensor, "
      "Tensor)");
  library.def(
      "torchmd_et_backward(Tensor q, Tensor k, Tensor s, Tensor? v, Tensor basis, Tensor "
      "envelope, Tensor direction, Tensor weight, Tensor bias, Tensor own, Tensor sender, "
      "Tensor receiver, Tensor pieces, int heads, bool damped, Tensor logits, Tensor "
      "own_logits, Tensor d_scalar, Tensor d_vector, bool need_envelope, bool "
      "need_direction, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(potkit, CPU, library) {
  library.impl("torchmd_et_pieces", &all_pieces);
  library.impl("torchmd_et_forward", &forward);
  library.impl("torchmd_et_backward", &backward);
}

}  // namespace potkit
