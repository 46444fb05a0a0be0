// What the two files of TorchMD-Net ET's attention share: their inputs, and who sends to whom.
#pragma once

#include "torchmd_et.h"

namespace potkit {
namespace {

// pieces of work; × 1024 channels this is a quarter or half of the second-level cache; bfloat16
// products want to be larger
template <typename T>
constexpr int64_t block = std::is_same_v<T, float> ? 64 : 256;

// T: the precision of the filters' product and of what the network gives per atom; vectors are
// always float32
template <typename T>
struct Inputs : Edges {
  const T *q, *k, *s;
  // v: null in the first layer; own: [4F], filters of an atom and itself
  const float *v, *bias, *own;
  int64_t width, heads;
  bool damped;
};

// Who sends to whom and how: an edge, or an atom and itself (envelope 1, no direction).
struct Way {
  int64_t i, j;
  float f, scale, x, y, z;  // scale: what s¹ and s² are multiplied by
};
template <typename T>
inline Way way(const Inputs<T>& in, int64_t e) {
  const float *r = in.direction + 3 * e, f = in.envelope[e];
  return {in.receiver[e], in.sender[e], f, in.damped ? f : 1.0f, r[0], r[1], r[2]};
}
inline Way to_itself(int64_t i) { return {i, i, 1.0f, 1.0f, 0.0f, 0.0f, 0.0f}; }

// Σ term(c) over the channels c of a head. A compiler adds the lanes of a vector one after the
// other, which takes longer than the rest: for the usual widths W the sum is by pairs.
template <int64_t W, typename Term>
inline float over_head(int64_t h, int64_t per_head, Term&& term) {
  if constexpr (W > 0) {
    float sums[16] = {};
    for (int64_t start = 0; start < W; start += 16) {
#pragma omp simd
      for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += term(h * W + start + lane);
    }
    float halves[8], quarters[4];
    for (int64_t lane = 0; lane < 8; ++lane) halves[lane] = sums[lane] + sums[lane + 8];
    for (int64_t lane = 0; lane < 4; ++lane) quarters[lane] = halves[lane] + halves[lane + 4];
    return (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
  }
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = h * per_head; c < (h + 1) * per_head; ++c) sum += term(c);
  return sum;
}

// Calls go(in, carried, per_head) with the types and constants a run needs: whether there are
// vectors to carry, the width of a head.
template <typename T, typename Go>
void with_constants(const Inputs<T>& in, Go&& go) {
  auto with_head = [&](auto carried) {
    const int64_t per_head = in.width / in.heads;
    if (per_head == 32) return go(in, carried, std::integral_constant<int64_t, 32>{});
    if (per_head == 16) return go(in, carried, std::integral_constant<int64_t, 16>{});
    go(in, carried, std::integral_constant<int64_t, 0>{});
  };
  if (in.v) return with_head(std::true_type{});
  with_head(std::false_type{});
}

struct Arguments {
  const Tensor &q, &k, &s;
  const std::optional<Tensor>& v;
  const Tensor &basis, &envelope, &direction, &weight, &bias, &own, &sender, &receiver;
  int64_t heads;
  bool damped;

  // go(in) with the arguments' data in the precision of the product
  template <typename Go>
  void typed(Go&& go) const {
    auto with_type = [&](auto zero) {
      using T = decltype(zero);
      auto data = [](const Tensor& x) { return x.const_data_ptr<float>(); };
      const Edges edges(basis, envelope, direction, sender, receiver, q.size(0));
      go(Inputs<T>{edges, q.const_data_ptr<T>(), k.const_data_ptr<T>(), s.const_data_ptr<T>(),
                   v ? data(*v) : nullptr, data(bias), data(own), q.size(1), heads, damped});
    };
    if (weight.scalar_type() == at::kBFloat16) return with_type(BFloat16{});
    with_type(float{});
  }
};

}  // namespace
}  // namespace potkit
