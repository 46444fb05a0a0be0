// What the kernels share: activations that the compiler turns into vector instructions, conversions to bfloat16, and the division of
// edges among threads. Plain loops, no intrinsics: GCC and Clang vectorise them for the machine they run on.
#pragma once

// by function: reading all of ATen.h takes half as long as compiling a kernel
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

namespace potkit {

using at::BFloat16;
using at::Tensor;

// exp(x) by reduction to [-ln 2 / 2, ln 2 / 2] and the series there: 2 units in the last place; NaN stays NaN, the ends are clamped.
inline float exp_(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to the nearest integer, which then stands in the lowest bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(shifted) << 23;  // 2^n: the exponent's bias is added below
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + bits);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }
inline float silu(float x) { return x * sigmoid(x); }
// d silu / dx, given σ(x)
inline float silu_slope(float x, float s) { return s * (1.0f + x * (1.0f - s)); }
// d² silu / dx², given σ(x)
inline float silu_bend(float x, float s) { return s * (1.0f - s) * (2.0f + x * (1.0f - 2.0f * s)); }

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }
template <typename T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) { return x; }
template <>
inline BFloat16 narrow<BFloat16>(float x) {  // to nearest, ties to even; NaN stays NaN because its quiet bit is in the upper half
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return BFloat16(static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16), BFloat16::from_bits());
}

// Ranges of edges, one per thread, about equally long, cut only where the receiver changes: sums over receivers then never collide.
// One range if the receivers do not rise.
inline std::vector<int64_t> shares(const int64_t* receiver, int64_t n_edges, int64_t threads) {
  std::vector<int64_t> cuts{0};
  if (threads > 1 && std::is_sorted(receiver, receiver + n_edges)) {
    for (int64_t t = 1; t < threads; ++t) {
      int64_t cut = std::max(cuts.back(), n_edges * t / threads);
      while (cut > 0 && cut < n_edges && receiver[cut] == receiver[cut - 1]) ++cut;
      cuts.push_back(cut);
    }
  }
  cuts.push_back(n_edges);
  return cuts;
}

// Lowest and one past the highest sender of some edges: the rows a thread's own sum over senders must have. In a batch of molecules
// these are the rows of the thread's molecules.
struct Span {
  int64_t first = 0, past = 0;
};
inline Span span(const int64_t* index, int64_t begin, int64_t end) {
  if (begin == end) return {};
  auto [low, high] = std::minmax_element(index + begin, index + end);
  return {*low, *high + 1};
}

// A matrix [rows, columns] over memory that lives elsewhere.
template <typename T>
inline Tensor over(T* data, int64_t rows, int64_t columns) {
  return at::from_blob(data, {rows, columns}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

// total += gradᵀ value
template <typename T>
inline void accumulate(Tensor& total, const Tensor& grad, const Tensor& value) {
  if constexpr (std::is_same_v<T, float>) {
    total.addmm_(grad.t(), value);
  } else {
    total.add_(at::mm(grad.t(), value));
  }
}

// Calls ``work`` for the type of ``like``: float, or bfloat16 as within autocast.
template <typename Work>
inline void in_type_of(const Tensor& like, const char* name, Work work) {
  if (like.scalar_type() == at::kBFloat16) {
    work.template operator()<BFloat16>();
  } else {
    TORCH_CHECK(like.scalar_type() == at::kFloat, name, " is not for ", like.scalar_type());
    work.template operator()<float>();
  }
}

}  // namespace potkit
