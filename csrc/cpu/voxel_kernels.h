// The part of kernels_impl.h for points, voxels and their keys.
#pragma once

namespace pcssl {
namespace {

// floor(x / edge), far outside at most kFar, for one vector; odd: not 0 where x is not finite.
inline IntVec floor_quotient(Vec x, float edge, IntVec& odd) {
  odd |= x - x != 0;
  Vec q = x / broadcast(edge);
  q = q > -kFar ? q : broadcast(-kFar);
  q = q < kFar ? q : broadcast(kFar);
  const IntVec towards_zero = __builtin_convertvector(q, IntVec);
  return towards_zero + (__builtin_convertvector(towards_zero, Vec) > q);  // true is -1
}

bool voxel_keys(const float* points, const int64_t* batch, int64_t step, int64_t count, float edge, int64_t* keys,
                int64_t* low, int64_t* high) {
  constexpr int kBlock = 64, kVecs = 3 * kBlock / LANES;
  // x, y and z take turns in the lanes, and so in every third element of these.
  IntVec lowest[3], highest[3], odd = {};
  for (int v = 0; v < 3; ++v) lowest[v] = INT32_MAX - IntVec{}, highest[v] = INT32_MIN - IntVec{};
  int64_t first_scene = low[0], last_scene = high[0];
  float spare[3 * kBlock];
  for (int64_t first = 0; first < count; first += kBlock) {
    const int size = static_cast<int>(count - first < kBlock ? count - first : kBlock);
    const float* from = points + 3 * first;
    if (size < kBlock) {  // filled up with its first point
      for (int i = 0; i < 3 * kBlock; ++i) spare[i] = from[i < 3 * size ? i : i % 3];
      from = spare;
    }
    int32_t voxel[3 * kBlock];
    for (int v = 0; v < kVecs; ++v) {
      const IntVec x = floor_quotient(load(from + v * LANES), edge, odd);
      lowest[v % 3] = x < lowest[v % 3] ? x : lowest[v % 3];
      highest[v % 3] = x > highest[v % 3] ? x : highest[v % 3];
      *reinterpret_cast<LooseIntVec*>(voxel + v * LANES) = x;
    }
    for (int i = 0; i < size; ++i) {
      const int64_t scene = batch[(first + i) * step];
      first_scene = scene < first_scene ? scene : first_scene;
      last_scene = scene > last_scene ? scene : last_scene;
      keys[first + i] = pack_key(scene, voxel[3 * i], voxel[3 * i + 1], voxel[3 * i + 2]);
    }
  }
  low[0] = first_scene;
  high[0] = last_scene;
  bool finite = true;
  for (int i = 0; i < 3 * LANES && count > 0; ++i) {
    const int64_t l = lowest[i / LANES][i % LANES], h = highest[i / LANES][i % LANES];
    low[1 + i % 3] = l < low[1 + i % 3] ? l : low[1 + i % 3];
    high[1 + i % 3] = h > high[1 + i % 3] ? h : high[1 + i % 3];
    finite = finite && !odd[i % LANES];
  }
  return finite;
}

void key_bounds(const int64_t* keys, int64_t count, int64_t* low, int64_t* high) {
  constexpr int64_t mask = (1 << kAxisBits) - 1;
  // Comparing needs no shifts: an axis is masked out where it stands.
  int64_t lowest[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX}, highest[4] = {-1, -1, -1, -1};
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      const int64_t axis = keys[i] & (a ? mask << ((3 - a) * kAxisBits) : ~int64_t{0} << (3 * kAxisBits));
      lowest[a] = axis < lowest[a] ? axis : lowest[a];
      highest[a] = axis > highest[a] ? axis : highest[a];
    }
  for (int a = 0; a < 4; ++a) {
    const int64_t l = lowest[a] >> ((3 - a) * kAxisBits), h = highest[a] >> ((3 - a) * kAxisBits);
    low[a] = l < low[a] ? l : low[a];
    high[a] = h > high[a] ? h : high[a];
  }
}

void shorten(const int64_t* keys, int64_t count, const ShortKeys& how, uint32_t* shortened) {
  const ShortKeys copy = how;  // which nothing written here can change
  for (int64_t i = 0; i < count; ++i) shortened[i] = static_cast<uint32_t>(short_key(keys[i], copy));
}

inline int64_t rank(const Ranks& ranks, uint32_t key) {
  const uint64_t lower = (uint64_t{1} << (key & 63)) - 1;
  return ranks.below + __builtin_popcountll(ranks.there & lower);
}

inline void insert(Ranks& ranks, uint32_t key) { ranks.there |= uint64_t{1} << (key & 63); }

// Fills in `below`; how many numbers are there in all.
int64_t add_up(Ranks* ranks, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    ranks[i].below = sum;
    sum += __builtin_popcountll(ranks[i].there);
  }
  return sum;
}

int64_t rank_keys(const uint32_t* keys, int64_t count, Ranks* first, int64_t firsts, Ranks* second, int32_t* runs) {
  for (int64_t i = 0; i < firsts; ++i) first[i].there = 0;
  // By turns from both halves: a key often lies beside the one before it, whose set it would have to wait for.
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; ++i) {
    insert(first[keys[i] >> 12], keys[i] >> 6);
    insert(first[keys[half + i] >> 12], keys[half + i] >> 6);
  }
  if (count % 2) insert(first[keys[count - 1] >> 12], keys[count - 1] >> 6);
  const int64_t seconds = add_up(first, firsts);
  for (int64_t i = 0; i < seconds; ++i) second[i].there = 0;
  for (int64_t i = 0; i < count; ++i) {
    runs[i] = static_cast<int32_t>(rank(first[keys[i] >> 12], keys[i] >> 6));
    insert(second[runs[i]], keys[i]);
  }
  return add_up(second, seconds);
}

void take_ranks(const uint32_t* keys, int64_t count, const Ranks* second, const int32_t* runs, const ShortKeys& how,
                int64_t* ranks, int64_t* counts, int32_t* coords) {
  typedef uint32_t Voxel __attribute__((vector_size(16)));
  typedef uint32_t LooseVoxel __attribute__((vector_size(16), aligned(4), may_alias));
  int32_t corner[4];
  unpack_key(how.corner, corner);
  Voxel low, shift, mask;
  for (int a = 0; a < 4; ++a) {
    low[a] = static_cast<uint32_t>(corner[a]);
    shift[a] = how.mask[a] ? __builtin_ctzll(how.mask[a]) : 0;
    mask[a] = static_cast<uint32_t>(how.mask[a] >> shift[a]);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = rank(second[runs[i]], keys[i]);
    ranks[i] = at;
    ++counts[at];
    // Points of one voxel write the same.
    *reinterpret_cast<LooseVoxel*>(coords + 4 * at) = ((keys[i] - Voxel{}) >> shift & mask) + low;
  }
}

void coords_of(const uint32_t* keys, int64_t count, const ShortKeys& how, int32_t* coords) {
  const ShortKeys copy = how;
  for (int64_t i = 0; i < count; ++i) unpack_key(full_key(keys[i], copy), coords + 4 * i);
}

}  // namespace
}  // namespace pcssl
