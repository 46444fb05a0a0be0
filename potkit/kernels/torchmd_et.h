// TorchMD-Net ET's edges as pieces of work for threads.
//
// Its filters depend on the distance alone, so they are the same for i → j and j → i: both edges are one piece of work, with one row of
// filters between them. Which edges belong together is found by comparing directions and rows of the basis, so nothing is assumed.
#pragma once

#include "common.h"

#include <cstring>
#include <span>

namespace potkit {
namespace {

struct Edges {
  const float *basis, *envelope, *direction;
  const int64_t *sender, *receiver;
  int64_t n_atoms, n_edges, radial;

  using Maybe = std::optional<Tensor>;  // not every function looks at these
  Edges(const Tensor& basis, const Maybe& envelope, const Maybe& direction, const Tensor& sender, const Tensor& receiver, int64_t n_atoms)
      : basis(basis.const_data_ptr<float>()), envelope(envelope ? envelope->const_data_ptr<float>() : nullptr),
        direction(direction ? direction->const_data_ptr<float>() : nullptr), sender(sender.const_data_ptr<int64_t>()),
        receiver(receiver.const_data_ptr<int64_t>()), n_atoms(n_atoms), n_edges(sender.size(0)), radial(basis.size(1)) {}
};

// An edge and, where there is one, the edge the other way (else −1).
struct Piece {
  int64_t edge, back;
};
using Work = std::span<const Piece>;

// pieces: [E, 2], in rows after the last piece stands −1
inline Work work_of(const Tensor& pieces) {
  const Work rows{reinterpret_cast<const Piece*>(pieces.const_data_ptr<int64_t>()),
                  static_cast<size_t>(pieces.size(0))};
  const auto is_piece = [](const Piece& piece) { return piece.edge >= 0; };
  return rows.first(std::partition_point(rows.begin(), rows.end(), is_piece) - rows.begin());
}

// Edges i → j and j → i of one vector become one piece; an edge whose opposite is missing, cut off or not exactly opposite stays alone.
inline std::vector<Piece> pieces(const Edges& in) {
  std::vector<Piece> out;
  out.reserve(in.n_edges);
  if (!std::is_sorted(in.receiver, in.receiver + in.n_edges)) {
    for (int64_t e = 0; e < in.n_edges; ++e) out.push_back({e, -1});
    return out;
  }
  std::vector<int64_t> start(in.n_atoms + 1, 0);
  for (int64_t e = 0; e < in.n_edges; ++e) ++start[in.receiver[e] + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<char> taken(in.n_edges, 0);
  for (int64_t e = 0; e < in.n_edges; ++e) {
    if (taken[e]) continue;
    const float *r = in.direction + 3 * e, *row = in.basis + e * in.radial;
    int64_t back = -1;
    for (int64_t o = std::max(start[in.sender[e]], e + 1); o < start[in.sender[e] + 1]; ++o) {
      const float* s = in.direction + 3 * o;
      if (in.sender[o] == in.receiver[e] && !taken[o] && s[0] == -r[0] && s[1] == -r[1] && s[2] == -r[2] &&
          std::memcmp(in.basis + o * in.radial, row, in.radial * sizeof(float)) == 0) {
        taken[back = o] = 1;
        break;
      }
    }
    out.push_back({e, back});
  }
  return out;
}

// A thread's pieces and the atoms they touch; `own`: other threads touch some of these too, so that sums need rows of the thread's own.
struct Share {
  int64_t begin, end;
  Span atoms;
  bool own;
};

// About equal shares, cut between molecules where such a cut is near.
inline std::vector<Share> divide(const Edges& in, Work work, int64_t threads) {
  const int64_t n = static_cast<int64_t>(work.size());
  std::vector<int64_t> highest(n + 1, -1), lowest(n + 1, in.n_atoms);  // atom touched before piece k; from k on
  for (int64_t k = 0; k < n; ++k) highest[k + 1] = std::max({highest[k], in.sender[work[k].edge], in.receiver[work[k].edge]});
  for (int64_t k = n; k-- > 0;) lowest[k] = std::min({lowest[k + 1], in.sender[work[k].edge], in.receiver[work[k].edge]});
  for (threads = std::clamp<int64_t>(threads, 1, std::max<int64_t>(n, 1));; threads /= 2) {
    std::vector<int64_t> cuts{0};
    for (int64_t t = 1; t < threads; ++t) {
      const int64_t wish = n * t / threads, reach = n / (8 * threads);
      int64_t cut = wish;
      for (int64_t away = 0; away <= reach; ++away) {
        if (highest[wish + away] < lowest[wish + away]) { cut = wish + away; break; }
        if (highest[wish - away] < lowest[wish - away]) { cut = wish - away; break; }
      }
      cuts.push_back(cut);
    }
    cuts.push_back(n);
    std::vector<Share> out;
    int64_t rows = 0;
    for (int64_t t = 0; t < threads; ++t) {
      Share share{cuts[t], cuts[t + 1], {in.n_atoms, 0}, false};
      for (int64_t k = share.begin; k < share.end; ++k) {
        const auto [low, high] = std::minmax(in.sender[work[k].edge], in.receiver[work[k].edge]);
        share.atoms = {std::min(share.atoms.first, low), std::max(share.atoms.past, high + 1)};
      }
      if (share.begin == share.end) share.atoms = {};
      for (Share& other : out) {
        if (share.atoms.first < other.atoms.past && other.atoms.first < share.atoms.past) share.own = other.own = true;
      }
      out.push_back(share);
    }
    for (const Share& share : out) rows += share.own ? share.atoms.past - share.atoms.first : 0;
    if (threads == 1 || rows <= 4 * in.n_atoms) return out;  // many threads on one large system would fill the memory with their rows
  }
}

// Where a thread adds rows of a sum over atoms: the sum itself, or rows of its own that are added later.
struct Rows {
  Tensor room;
  float* data = nullptr;  // of atom 0

  Rows(const Tensor& whole, const Share& share) {
    if (share.own) room = at::zeros_like(whole.slice(0, share.atoms.first, share.atoms.past));
    data = share.own ? room.data_ptr<float>() - share.atoms.first * whole.stride(0) : whole.data_ptr<float>();
  }
  void add_to(Tensor& whole, const Share& share) const {
    if (share.own) whole.slice(0, share.atoms.first, share.atoms.past).add_(room);
  }
};

// Rows of the basis of some pieces, one after the other
template <typename T>
void basis_rows(const Edges& in, const Piece* work, int64_t size, T* __restrict__ out) {
  for (int64_t b = 0; b < size; ++b) {
    const float* __restrict__ row = in.basis + work[b].edge * in.radial;
    for (int64_t k = 0; k < in.radial; ++k) out[b * in.radial + k] = narrow<T>(row[k]);
  }
}

// Gradients of rows of the basis, a row per piece. Equal rows of one distance: half to each of the two edges leaves every gradient through
// the distance what it is.
template <typename T>
void give_halves(const Edges& in, const Piece* work, int64_t size, const T* rows, float* d_basis) {
  for (int64_t b = 0; b < size; ++b) {
    const T* __restrict__ row = rows + b * in.radial;
    float* __restrict__ to = d_basis + work[b].edge * in.radial;
    const float part = work[b].back >= 0 ? 0.5f : 1.0f;
    for (int64_t k = 0; k < in.radial; ++k) to[k] = part * widen(row[k]);
    if (work[b].back >= 0) std::memcpy(d_basis + work[b].back * in.radial, to, in.radial * sizeof(float));
  }
}

// Changes of rows of the basis of some pieces: the mean of both edges', as each of them gave half
// of its gradient to the row (see `give_halves`).
template <typename T>
void changed_rows(const Edges& in, const float* changes, const Piece* work, int64_t size,
                  T* __restrict__ out) {
  for (int64_t b = 0; b < size; ++b) {
    const float* __restrict__ row = changes + work[b].edge * in.radial;
    const int64_t back = work[b].back >= 0 ? work[b].back : work[b].edge;
    const float* __restrict__ other = changes + back * in.radial;
    for (int64_t k = 0; k < in.radial; ++k) {
      out[b * in.radial + k] = narrow<T>(0.5f * (row[k] + other[k]));
    }
  }
}

// total [K, F] += basisᵀ grad; product: room for bfloat16's, the sum over blocks is float32
template <typename T>
void add_product(Tensor& total, const Tensor& basis, const Tensor& grad, Tensor& product) {
  if constexpr (std::is_same_v<T, float>) {
    total.addmm_(basis.t(), grad);
  } else {
    total.add_(at::mm_out(product, basis.t(), grad));
  }
}

}  // namespace
}  // namespace potkit
