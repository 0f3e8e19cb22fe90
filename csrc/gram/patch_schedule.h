// How the Gram matrix of a convolution's patches is computed on the CPU (the two ways of patches.h).
//
// Shifts: a chunk of images is packed as panels of channels, position by position, with zeros around each image, so that
// position u + delta lies at a fixed distance from u whatever u is. A task owns a tile of channels (i, j) and goes through
// all differences delta: it sums R_delta over each piece of the image, then adds the pieces of each window to G. Its part
// of G, taps^2 times the tile, stays in the cache meanwhile. The cut depends on the shape only, never on the threads.
#pragma once

#include <vector>

#include "gram/patches.h"
#include "gram/schedule.h"

namespace fastrank {
namespace gram {

// Channels from which on the shifts are faster: with fewer, most of a tile is padding.
constexpr int64_t kShiftChannels = 12;
constexpr int64_t kImageBytes = int64_t{16} << 20;  // of packed images at a time
// Positions whose products are summed before they join a tile's sums: as gram.h says in fast mode.
constexpr int64_t kFlush(bool fast) { return fast ? kFastChunk : kExactChunk; }

// A band of one line, with its halo, must not take more than this either.
inline bool by_shifts(const Patches& p) {
  const int64_t halo[] = {(p.kernel[0] - 1) * p.dilation[0], (p.kernel[1] - 1) * p.dilation[1]};
  const double band = (3.0 * halo[0] + 1) * (p.size[1] + halo[1]) * (p.channels + 16) * sizeof(double);
  return p.step[0] == 1 && p.step[1] == 1 && p.taps() > 1 && p.kernel[0] <= Cuts::kTaps &&
         p.kernel[1] <= Cuts::kTaps && p.channels >= kShiftChannels && band <= kImageBytes;
}

// A chunk is some images whole, or rows [row, row + band) of one. Images of all groups are counted in one go ("slots").
struct PatchPlan {
  Cuts cuts[2];
  int64_t halo[2], line, slots, band, images, panels, panel_stride;
  int64_t chunks, most;  // in all; positions of the longest piece of a chunk

  PatchPlan(const Kernels& kernels, const Patches& p) : cuts{Cuts(p, 0), Cuts(p, 1)} {
    for (int axis = 0; axis < 2; ++axis) halo[axis] = (p.kernel[axis] - 1) * p.dilation[axis];
    line = p.size[1] + halo[1];
    panels = ceil_div(p.channels, kernels.lanes);
    slots = p.images * p.groups;
    const int64_t line_bytes = line * panels * kernels.lanes * kernels.element_size;
    images = std::max<int64_t>(1, (kImageBytes / line_bytes - halo[0]) / (p.size[0] + halo[0]));
    images = std::min(images, slots);
    band = images > 1 ? p.size[0] : std::min(p.size[0], std::max(halo[0] + 1, kImageBytes / line_bytes - 2 * halo[0]));
    panel_stride = ((images * (band + halo[0]) + halo[0]) * line + halo[1]) * kernels.lanes;
    chunks = ceil_div(slots, images) * ceil_div(p.size[0], band);
    most = images * band * p.size[1];
  }

  int64_t position(int64_t slot, int64_t band_row, int64_t x) const {
    return (slot * (band + halo[0]) + halo[0] + band_row) * line + halo[1] + x;
  }
};

inline Depth patch_depth(const Kernels& kernels, const Patches& p, bool fast) {
  if (!by_shifts(p)) return Plan(kernels, p.rows(), p.columns()).depth(kernels, p.rows());
  const PatchPlan plan(kernels, p);
  const int64_t pieces = plan.cuts[0].pieces * plan.cuts[1].pieces, flush = kFlush(fast);
  // Within a flush; flushes of a piece; pieces of a window; the shift's three terms, of two products each.
  return {(fast ? 0 : std::min(plan.most, flush)) + ceil_div(plan.most, flush) + pieces + 8, plan.chunks};
}

class PatchRun {
 public:
  PatchRun(const Kernels& kernels, bool fast, const Patches& p, const double* shift, const Output& out, int threads)
      : kernels_(kernels), p_(p), plan_(kernels, p), shift_(shift), out_(out), threads_(threads), flush_(kFlush(fast)),
        pieces_(plan_.cuts[0].pieces * plan_.cuts[1].pieces), differences_{2 * p.kernel[0] - 1, 2 * p.kernel[1] - 1} {}

  void run() {
    Workspace packed_space, sums_space;
    packed_ = static_cast<char*>(packed_space.get(plan_.panels * plan_.panel_stride * kernels_.element_size));
    const int64_t width = plan_.panels * kernels_.lanes;
    sums_ = static_cast<double*>(sums_space.get(all_differences() * pieces_ * width * int64_t{sizeof(double)}));
    for (int64_t first = 0; first < plan_.slots; first += plan_.images)
      for (int64_t row = 0; row < p_.size[0]; row += plan_.band) {
        chunk_ = {first, std::min(plan_.images, plan_.slots - first), row, std::min(plan_.band, p_.size[0] - row),
                  first == 0 && row == 0};
        pack();
        list_positions();
        add_column_sums();
        add_tiles();
      }
  }

 private:
  struct Chunk {
    int64_t slot, slots, row, rows;
    bool first;
  };
  struct Tile { int64_t i, j, panels; };

  const Kernels& kernels_;
  const Patches& p_;
  const PatchPlan plan_;
  const double* const shift_;
  const Output out_;
  const int threads_;
  const int64_t flush_, pieces_, differences_[2];
  char* packed_;
  double* sums_;  // [difference][piece][channel]: of Y(u) where u + delta lies outside the image; for delta = 0, of Y
  Chunk chunk_;
  Chunk listed_{-1, -1, -1, -1, false};
  std::vector<std::vector<int32_t>> at_, outside_;  // positions: [piece]; [difference][piece]

  int64_t all_differences() const { return differences_[0] * differences_[1]; }
  int64_t centre() const { return all_differences() / 2; }
  // Difference number e is (k' - k) = (ky, kx).
  int64_t ky(int64_t e) const { return e / differences_[1] - (p_.kernel[0] - 1); }
  int64_t kx(int64_t e) const { return e % differences_[1] - (p_.kernel[1] - 1); }
  double* sums(int64_t e, int64_t piece) const {
    return sums_ + (e * pieces_ + piece) * plan_.panels * kernels_.lanes;
  }

  // A band takes its halo from the image where that goes on; everything else around an image is 0.
  void pack() {
    const int64_t lanes = kernels_.lanes, halo = plan_.halo[0];
    const int64_t groups = ceil_div(plan_.panels, kPackPanels), bytes = lanes * kernels_.element_size;
    parallel_for(chunk_.slots * groups, threads_, [&](int64_t task) {
      const int64_t slot = task / groups, panel = task % groups * kPackPanels;
      const int64_t last = std::min(plan_.panels, panel + kPackPanels);
      const int64_t image = (chunk_.slot + slot) / p_.groups, group = (chunk_.slot + slot) % p_.groups;
      const bool end = slot + 1 == chunk_.slots;  // the halo behind an image is the next one's before
      for (int64_t row = -halo; row < chunk_.rows + (end ? halo : 0); ++row) {
        const int64_t y = chunk_.row + row, at = plan_.position(slot, row, 0);
        const bool inside = y >= 0 && y < p_.size[0] && (plan_.images == 1 || (row >= 0 && row < chunk_.rows));
        const bool last_row = end && row + 1 == chunk_.rows + halo;
        for (int64_t q = panel; q < last; ++q) {
          char* const line = packed_ + (q * plan_.panel_stride + (at - plan_.halo[1]) * lanes) * kernels_.element_size;
          const int64_t zeros = inside ? plan_.halo[1] : plan_.line;
          memset(line, 0, static_cast<size_t>(zeros * bytes));
          if (last_row) memset(line + plan_.line * bytes, 0, static_cast<size_t>(plan_.halo[1] * bytes));
        }
        if (!inside) continue;
        const int64_t offset =
            image * p_.stride_image + group * p_.channels * p_.stride_channel + y * p_.stride[0];
        const Matrix pixels = {advance(offset), p_.dtype, p_.size[1], p_.channels, p_.size[1], 0, p_.stride[1],
                               p_.stride_channel};
        kernels_.pack(pixels, shift_, 0, p_.size[1], panel, last, packed_ + at * bytes,
                      plan_.panel_stride, nullptr);
      }
    });
  }

  const void* advance(int64_t elements) const {
    constexpr int64_t size[] = {8, 4, 2, 2};
    return static_cast<const char*>(p_.data) + elements * size[static_cast<int>(p_.dtype)];
  }

  void list_positions() {
    // All that a list depends on; chunks that only continue have the last one's.
    if (chunk_.slots == listed_.slots && chunk_.row == listed_.row && chunk_.rows == listed_.rows) return;
    listed_ = chunk_;
    at_.assign(static_cast<size_t>(pieces_), {});
    outside_.assign(static_cast<size_t>(all_differences() * pieces_), {});
    for (int py = 0; py < plan_.cuts[0].pieces; ++py)
      for (int px = 0; px < plan_.cuts[1].pieces; ++px) {
        const int64_t piece = py * plan_.cuts[1].pieces + px;
        const int64_t left = plan_.cuts[1].edge[px], right = plan_.cuts[1].edge[px + 1];
        const int64_t top = std::max(plan_.cuts[0].edge[py], chunk_.row);
        const int64_t bottom = std::min(plan_.cuts[0].edge[py + 1], chunk_.row + chunk_.rows);
        const auto add = [&](std::vector<int32_t>& list, int64_t slot, int64_t y, int64_t from, int64_t to) {
          for (int64_t x = std::max(from, left); x < std::min(to, right); ++x)
            list.push_back(static_cast<int32_t>(plan_.position(slot, y - chunk_.row, x)));
        };
        for (int64_t slot = 0; slot < chunk_.slots; ++slot)
          for (int64_t y = top; y < bottom; ++y) {
            add(at_[static_cast<size_t>(piece)], slot, y, left, right);
            for (int64_t e = 0; shift_ && e < all_differences(); ++e) {
              const int64_t dy = ky(e) * p_.dilation[0], dx = kx(e) * p_.dilation[1];
              auto& list = outside_[static_cast<size_t>(e * pieces_ + piece)];
              if (y + dy < 0 || y + dy >= p_.size[0]) {
                add(list, slot, y, left, right);
              } else {
                add(list, slot, y, 0, std::min(-dx, p_.size[1]));
                add(list, slot, y, std::max<int64_t>(p_.size[1] - dx, 0), p_.size[1]);
              }
            }
          }
      }
  }

  void add_column_sums() {
    const int64_t lanes = kernels_.lanes, taps = p_.taps();
    parallel_for(plan_.panels, threads_, [&](int64_t panel) {
      for (int64_t e = 0; e < all_differences(); ++e)
        for (int64_t piece = 0; piece < pieces_; ++piece) {
          double* const to = sums(e, piece) + panel * lanes;
          std::fill(to, to + lanes, 0.0);
          const auto& list = e == centre() ? at_[static_cast<size_t>(piece)]
                                           : outside_[static_cast<size_t>(e * pieces_ + piece)];
          each_flush(list, [&](const int32_t* at, int64_t count) {
            kernels_.add_sums(packed_, plan_.panel_stride, at, count, panel * lanes, to);
          });
        }
      for (int64_t c = panel * lanes; c < std::min(p_.channels, (panel + 1) * lanes); ++c)
        for (int64_t k = 0; k < taps; ++k) {
          double sum = 0;
          over_window(k, [&](int64_t piece) { sum += sums(centre(), piece)[c]; });
          // Padding is 0 - s.
          if (shift_ && chunk_.first) sum -= shift_[c] * static_cast<double>(p_.rows() - both_inside(k, k));
          out_.total[c * taps + k] += sum;
        }
    });
  }

  template <class Body> void each_flush(const std::vector<int32_t>& list, const Body& body) const {
    const int64_t size = static_cast<int64_t>(list.size());
    for (int64_t k = 0; k < size; k += flush_) body(list.data() + k, std::min(flush_, size - k));
  }

  // body(piece) for the pieces of the window of tap k.
  template <class Body> void over_window(int64_t k, const Body& body) const {
    const int64_t row = k / p_.kernel[1], column = k % p_.kernel[1];
    for (int y = plan_.cuts[0].first[row]; y < plan_.cuts[0].last[row]; ++y)
      for (int x = plan_.cuts[1].first[column]; x < plan_.cuts[1].last[column]; ++x)
        body(int64_t{y} * plan_.cuts[1].pieces + x);
  }

  // Outputs for which taps k and l both lie in the image, of all images.
  int64_t both_inside(int64_t k, int64_t l) const {
    int64_t count = p_.images * p_.groups;
    for (int axis = 0; axis < 2; ++axis) {
      const auto tap = [&](int64_t t) { return axis ? t % p_.kernel[1] : t / p_.kernel[1]; };
      const auto begin = [&](int64_t t) { return p_.pad[axis] - tap(t) * p_.dilation[axis]; };
      const int64_t from = std::max<int64_t>(0, std::max(begin(k), begin(l)));
      const int64_t to = std::min(p_.outputs(axis), std::min(begin(k), begin(l)) + p_.size[axis]);
      count *= std::max<int64_t>(0, to - from);
    }
    return count;
  }

  void add_tiles() {
    std::vector<Tile> tiles;  // the longest first
    const int64_t lanes = kernels_.lanes;
    for (int64_t i = ceil_div(p_.channels, kernels_.tile_rows) * kernels_.tile_rows; (i -= kernels_.tile_rows) >= 0;) {
      const int64_t needed = (std::min(p_.channels, i + kernels_.tile_rows) - 1) / lanes + 1;
      for (int64_t panel = 0; panel < needed; panel += kernels_.tile_panels)
        tiles.push_back({i, panel * lanes, std::min(kernels_.tile_panels, needed - panel)});
    }
    parallel_for(static_cast<int64_t>(tiles.size()), threads_,
                 [&](int64_t task) { add_tile(tiles[static_cast<size_t>(task)]); });
  }

  // Differences of one dy together: while a block of positions and its neighbours lie in the first cache, all dx are
  // summed.
  void add_tile(const Tile& tile) const {
    static thread_local Workspace space;
    const int64_t width = tile.panels * kernels_.lanes, size = kernels_.tile_rows * width;
    double* const all = static_cast<double*>(space.get((differences_[1] * pieces_ + 1) * size * int64_t{sizeof(double)}));
    double* const window = all + differences_[1] * pieces_ * size;
    for (int64_t dy = 1 - p_.kernel[0]; dy < p_.kernel[0]; ++dy) {
      std::fill(all, window, 0.0);
      const Taps rows = pairs(0, dy);
      for (int64_t piece = 0; piece < pieces_; ++piece) {
        if (!reached(0, piece / plan_.cuts[1].pieces, rows)) continue;
        each_flush(at_[static_cast<size_t>(piece)], [&](const int32_t* at, int64_t count) {
          for (int64_t dx = 1 - p_.kernel[1]; dx < p_.kernel[1]; ++dx)
            if (reached(1, piece % plan_.cuts[1].pieces, pairs(1, dx)))
              kernels_.add_tile(packed_, plan_.panel_stride, at, count,
                                dy * p_.dilation[0] * plan_.line + dx * p_.dilation[1], tile.i, tile.j, tile.panels,
                                all + ((dx + p_.kernel[1] - 1) * pieces_ + piece) * size);
        });
      }
      for (int64_t dx = 1 - p_.kernel[1]; dx < p_.kernel[1]; ++dx) {
        const int64_t e = (dy + p_.kernel[0] - 1) * differences_[1] + dx + p_.kernel[1] - 1;
        const double* const of_dx = all + (dx + p_.kernel[1] - 1) * pieces_ * size;
        const Taps columns = pairs(1, dx);
        for (int64_t y = rows.first; y < rows.last; ++y)
          for (int64_t x = columns.first; x < columns.last; ++x) {
            const int64_t k = y * p_.kernel[1] + x, l = k + dy * p_.kernel[1] + dx;
            const double* terms[(2 * Cuts::kTaps + 1) * (2 * Cuts::kTaps + 1)];
            int64_t count = 0;
            over_window(k, [&](int64_t piece) { terms[count++] = of_dx + piece * size; });
            kernels_.sum(terms, count, size, window);
            if (shift_) add_padding(tile, width, e, k, l, window);
            add_to_gram(tile, width, k, l, window);
          }
      }
    }
  }

  struct Taps { int64_t first, last; };

  // Taps of an axis with another at a distance of `difference` taps.
  Taps pairs(int axis, int64_t difference) const {
    return {std::max<int64_t>(0, -difference), std::min(p_.kernel[axis], p_.kernel[axis] - difference)};
  }

  // Whether the window of any of the taps has the piece of an axis.
  bool reached(int axis, int64_t piece, Taps taps) const {
    for (int64_t k = taps.first; k < taps.last; ++k)
      if (plan_.cuts[axis].first[k] <= piece && piece < plan_.cuts[axis].last[k]) return true;
    return false;
  }

  // The terms of patches.h for outputs where tap k, tap l, or both lie outside the image.
  void add_padding(const Tile& tile, int64_t width, int64_t e, int64_t k, int64_t l, double* window) const {
    const int64_t back = all_differences() - 1 - e;  // from l to k
    const int64_t both = p_.rows() - both_inside(k, k) - both_inside(l, l) + both_inside(k, l);
    const double outside = chunk_.first ? static_cast<double>(both) : 0;
    const auto of = [&](int64_t difference, int64_t tap, int64_t c) {
      double sum = 0;
      if (difference != centre()) over_window(tap, [&](int64_t piece) { sum += sums(difference, piece)[c]; });
      return sum;
    };
    const int64_t last = std::min(p_.channels, tile.j + width);
    double columns[64];  // of tap l where k is outside; a tile has at most 3 panels of 16
    for (int64_t c = tile.j; c < last; ++c) columns[c - tile.j] = of(back, l, c);
    for (int64_t r = 0; r < kernels_.tile_rows && tile.i + r < p_.channels; ++r) {
      const double s = shift_[tile.i + r], row = of(e, k, tile.i + r);
      for (int64_t c = tile.j; c < last; ++c)
        window[r * width + c - tile.j] += s * shift_[c] * outside - shift_[c] * row - s * columns[c - tile.j];
    }
  }

  void add_to_gram(const Tile& tile, int64_t width, int64_t k, int64_t l, const double* window) const {
    const int64_t taps = p_.taps();
    for (int64_t r = 0; r < kernels_.tile_rows && tile.i + r < p_.channels; ++r) {
      const int64_t i = tile.i + r, row = i * taps + k;
      const int64_t last = std::min(tile.j + width, l <= k ? i + 1 : i);  // column c * taps + l <= row
      double* const to = out_.c + row * out_.ldc + l;
      const double* const from = window + r * width;
      for (int64_t c = tile.j; c < last; ++c) to[c * taps] += from[c - tile.j];
    }
  }
};

// lower(C) += P^T P and total += column sums of the shifted patches P; `shift` has a number for each channel, or is null.
inline void accumulate_patches(const Kernels& kernels, bool fast, const Patches& p, const double* shift,
                               const Output& out, int threads) {
  if (p.rows() == 0 || p.columns() == 0) return;
  if (by_shifts(p)) return PatchRun(kernels, fast, p, shift, out, threads).run();
  std::vector<double> columns;
  for (int64_t i = 0; shift && i < p.columns(); ++i) columns.push_back(shift[i / p.taps()]);
  accumulate(
      kernels, p.rows(), p.columns(),
      [&](int64_t row, int64_t count, int64_t first, int64_t last, void* packed, int64_t panel_stride, double* sums) {
        kernels.pack_patches(p, shift ? columns.data() : nullptr, row, count, first, last, packed, panel_stride, sums);
      },
      out, threads);
}

}  // namespace gram
}  // namespace fastrank
