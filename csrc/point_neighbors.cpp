// The points of a scene near other points of it.
//
// Points are sorted by the key of their cell, whose edge is a little more than the radius, and
// queries as well. What is near a query lies in 3 x 3 columns of 3 cells; a column is one run of
// the sorted points, and moves only forward from one query to the next: no search, no hash table.
#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>
#include <vector>

#include "sorted_keys.h"

namespace pcssl {
namespace {

constexpr int kColumns = 9;

// Ascending keys and the row of each.
class KeyOrder {
 public:
  // The keys of points' cells.
  KeyOrder(const Tensor& xyz, const Tensor& batch, float edge, const char* name)
      : count_(xyz.size(0)), keys_(count_ + 1), rows_(count_) {
    const float* from = read<float>(xyz, 2, name);
    const int64_t* scene = read<int64_t>(batch, 1, "batch");
    STD_TORCH_CHECK(xyz.size(1) == 3 && batch.size(0) == count_, name, " must be (N, 3) and have a scene each");
    STD_TORCH_CHECK(count_ <= INT32_MAX, "too many ", name, " for 32-bit rows");
    const Scratch<int64_t> unsorted(count_);
    int64_t* const keys = unsorted.get();
    Bounds bounds;
    const bool finite = key_points(from, scene, 1, count_, edge, keys, bounds);
    bool inside = finite && bounds.low[0] >= 0 && bounds.high[0] <= kMaxBatch;
    for (int a = 1; a < 4; ++a) inside = inside && in_range(bounds.low[a]) && in_range(bounds.high[a]);
    STD_TORCH_CHECK(inside || count_ == 0, name, " are out of the range of keys");
    const ShortKeys how = how_to_shorten(keys, count_);
    how.bits <= 32 ? fill<uint32_t>(keys, how) : fill<uint64_t>(keys, how);
    keys_[count_] = INT64_MAX;
  }

  int64_t count() const { return count_; }
  // Position `count` has a key too, above all others.
  int64_t key(int64_t i) const { return keys_[i]; }
  int64_t lower_bound(int64_t key) const { return std::lower_bound(keys_.get(), keys_.get() + count_, key) - keys_.get(); }
  int32_t row(int64_t i) const { return rows_[i]; }

 private:
  template <typename Short>
  void fill(const int64_t* keys, const ShortKeys& how) {
    const SortedKeys<Short> sorted(keys, count_, how);
    for (int64_t i = 0; i < count_; ++i) {
      keys_[i] = full_key(sorted[i].key, how);
      rows_[i] = sorted[i].row;
    }
  }

  const int64_t count_;
  const Scratch<int64_t> keys_;
  const Scratch<int32_t> rows_;
};

struct Point {
  float x, y, z;
  int32_t row;
};

// Squared distance and row in one number whose order is that of both: first distance, then row.
uint64_t rank(const Point& point, const float* query) {
  const float x = query[0] - point.x, y = query[1] - point.y, z = query[2] - point.z;
  const float squared = x * x + y * y + z * z;
  return static_cast<uint64_t>(std::bit_cast<uint32_t>(squared)) << 32 | static_cast<uint32_t>(point.row);
}
float squared_of(uint64_t rank) { return std::bit_cast<float>(static_cast<uint32_t>(rank >> 32)); }
int64_t row_of(uint64_t rank) { return static_cast<int64_t>(rank & 0xFFFFFFFF); }

// No rank within the radius is above.
uint64_t highest_rank(float radius) {
  return static_cast<uint64_t>(std::bit_cast<uint32_t>(radius * radius)) << 32 | UINT32_MAX;
}

class Points {
 public:
  Points(const Tensor& xyz, const Tensor& batch, float edge) : order_(xyz, batch, edge, "points"), points_(xyz.size(0)) {
    const float* from = read<float>(xyz, 2, "points");
    for (int64_t i = 0; i < order_.count(); ++i) {
      const float* p = from + 3 * int64_t{order_.row(i)};
      points_[i] = {p[0], p[1], p[2], order_.row(i)};
    }
  }

  // The points around queries, which come in ascending order of their keys.
  class Walk {
   public:
    explicit Walk(const Points& points) : of_(points) {}

    // Calls visit(point) for the points in the 27 cells around the cell `key`.
    template <typename Visit>
    void around(int64_t key, Visit visit) {
      if (!started_ || key != key_) find(key);
      for (int c = 0; c < kColumns; ++c)
        for (int64_t i = first_[c]; i < last_[c]; ++i) visit(of_.points_[i]);
    }

   private:
    void find(int64_t key) {
      const KeyOrder& order = of_.order_;
      for (int c = 0; c < kColumns; ++c) {
        // Beyond the range of an axis a column wraps around to cells that are too far away to matter.
        int64_t low;
        if (__builtin_add_overflow(key, key_step(c / 3 - 1, c % 3 - 1, -1), &low)) low = INT64_MAX;
        low = std::min(low, INT64_MAX - 3);
        const auto before = [&](int64_t i) { return order.key(i) < low; };
        const auto inside = [&](int64_t i) { return order.key(i) <= low + 2; };
        first_[c] = skip(started_ ? first_[c] : order.lower_bound(low), before);
        last_[c] = skip(first_[c], inside);
      }
      key_ = key;
      started_ = true;
    }

    // The first position from i on that is not `passed`. Mostly a few steps on: those without a branch, whose way the
    // CPU could not predict.
    template <typename Passed>
    static int64_t skip(int64_t i, Passed passed) {
      for (int step = 0; step < 4; ++step) i += passed(i);
      while (passed(i)) ++i;
      return i;
    }

    const Points& of_;
    bool started_ = false;
    int64_t key_ = 0, first_[kColumns] = {}, last_[kColumns] = {};
  };

 private:
  const KeyOrder order_;
  const Scratch<Point> points_;
};

// Edge of a cell in radii: rounding must not put a point within the radius beyond the next cell.
constexpr float kCell = 1.01f;

struct Search {
  Search(const Tensor& queries, const Tensor& query_batch, const Tensor& points, const Tensor& point_batch, float radius)
      : from(read<float>(queries, 2, "queries")),
        queries(queries, query_batch, kCell * radius, "queries"),
        points(points, point_batch, kCell * radius),
        highest(highest_rank(radius)) {}

  // Calls work(walk, first, last) for runs of the queries, each on one thread.
  template <typename Work>
  void for_runs(Work work) const {
    const int runs = threads();
#pragma omp parallel for num_threads(runs) schedule(static)
    for (int run = 0; run < runs; ++run)
      work(Points::Walk(points), cut(queries.count(), runs, run), cut(queries.count(), runs, run + 1));
  }

  const float* from;
  const KeyOrder queries;
  const Points points;
  const uint64_t highest;
};

float checked(double radius) {
  const float r = static_cast<float>(radius);
  STD_TORCH_CHECK(r > 0 && std::isfinite(r), "radius must be positive and finite");
  return r;
}

// The row of the nearest point of the same scene, -1 where none is within the radius, and its
// distance, inf there.
std::tuple<Tensor, Tensor> nearest(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch,
                                   double radius) {
  const Search search(queries, query_batch, points, point_batch, checked(radius));
  Tensor index = make<int64_t>(queries, {queries.size(0)}), distance = make<float>(queries, {queries.size(0)});
  int64_t* to_index = write<int64_t>(index);
  float* to_distance = write<float>(distance);
  search.for_runs([&](Points::Walk walk, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = search.queries.row(i);
      const float* query = search.from + 3 * row;
      uint64_t best = UINT64_MAX;
      walk.around(search.queries.key(i), [&](const Point& point) { best = std::min(best, rank(point, query)); });
      const bool found = best <= search.highest;
      to_index[row] = found ? row_of(best) : -1;
      to_distance[row] = found ? std::sqrt(squared_of(best)) : INFINITY;
    }
  });
  return {index, distance};
}

// The k nearest points within the radius of each query, all of them if k is 0: offsets (Q + 1,)
// and rows of points, the nearest first, of equally near ones the lowest row.
std::tuple<Tensor, Tensor> radius_neighbors(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch,
                                            double radius, int64_t k) {
  STD_TORCH_CHECK(k >= 0, "k must not be negative");
  const Search search(queries, query_batch, points, point_batch, checked(radius));
  const int64_t most = k ? k : INT64_MAX;
  Tensor offsets = make<int64_t>(queries, {queries.size(0) + 1});
  int64_t* end = write<int64_t>(offsets) + 1;
  end[-1] = 0;
  search.for_runs([&](Points::Walk walk, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = search.queries.row(i);
      int64_t count = 0;
      walk.around(search.queries.key(i),
                  [&](const Point& point) { count += rank(point, search.from + 3 * row) <= search.highest; });
      end[row] = std::min(count, most);
    }
  });
  for (int64_t q = 0; q < queries.size(0); ++q) end[q] += end[q - 1];

  Tensor indices = make<int64_t>(queries, {end[queries.size(0) - 1]});
  int64_t* to = write<int64_t>(indices);
  search.for_runs([&](Points::Walk walk, int64_t first, int64_t last) {
    std::vector<uint64_t> found;
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = search.queries.row(i), count = end[row] - end[row - 1];
      found.clear();
      walk.around(search.queries.key(i), [&](const Point& point) {
        const uint64_t candidate = rank(point, search.from + 3 * row);
        if (candidate <= search.highest) found.push_back(candidate);
      });
      if (count < static_cast<int64_t>(found.size())) std::nth_element(found.begin(), found.begin() + count, found.end());
      std::sort(found.begin(), found.begin() + count);
      std::transform(found.begin(), found.begin() + count, to + end[row - 1], row_of);
    }
  });
  return {offsets, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("nearest", TORCH_BOX(&nearest));
  m.impl("radius_neighbors", TORCH_BOX(&radius_neighbors));
}

}  // namespace pcssl
