// Sums over pairs of atoms, each pair once: what the kernels of schnet.cpp and schnet_table.cpp share.
#pragma once

#include "common.h"

#include <array>

namespace potkit {

// Atoms of the pairs [P], i rising (else one thread does it all), and the sizes of the atoms' arrays [N, F].
struct Pairs {
  const int64_t *i, *j;
  int64_t n_pairs, n_atoms, width;
  Pairs(const Tensor& i, const Tensor& j, const Tensor& x)
      : i(i.const_data_ptr<int64_t>()), j(j.const_data_ptr<int64_t>()), n_pairs(i.size(0)), n_atoms(x.size(0)), width(x.size(1)) {}
  std::vector<int64_t> cuts() const { return shares(i, n_pairs, at::get_num_threads()); }
};

// Rows a thread sums into for the atoms j of its pairs; those for the atoms i are the result's own, which no other thread has. Even one
// thread needs both: where an atom meets its own image, i is j.
struct Rows {
  Span atoms;
  std::vector<float> data;
  void open(const Span& span, int64_t width) {
    atoms = span;
    data.assign((span.past - span.first) * width, 0.0f);
  }
  float* row(int64_t atom, int64_t width) { return data.data() + (atom - atoms.first) * width; }
  void add_to(const Tensor& total) {
    if (data.empty()) return;
    total.slice(0, atoms.first, atoms.past).add_(over(data.data(), atoms.past - atoms.first, total.size(1)));
  }
};

// work(share, begin, end, rows) for each share of the pairs, each in a thread; ``rows`` are N_SUMS arrays for sums over the atoms j,
// afterwards added to ``totals``.
template <size_t N_SUMS, typename Work>
void in_shares(const Pairs& pairs, const std::vector<int64_t>& cuts, const std::array<Tensor, N_SUMS>& totals, Work work) {
  const int64_t n_shares = static_cast<int64_t>(cuts.size()) - 1;
  std::vector<std::array<Rows, N_SUMS>> rows(n_shares);
  at::parallel_for(0, n_shares, 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t share = begin; share < end; ++share) {
      const Span atoms = span(pairs.j, cuts[share], cuts[share + 1]);
      for (Rows& r : rows[share]) r.open(atoms, pairs.width);
      work(share, cuts[share], cuts[share + 1], rows[share]);
    }
  });
  at::AutoDispatchBelowADInplaceOrView guard;
  for (auto& one : rows)
    for (size_t k = 0; k < N_SUMS; ++k) one[k].add_to(totals[k]);
}

}  // namespace potkit
