#include "aten.h"

namespace pcssl::cuda {
namespace {

// Points and queries, and the points sorted by the cell that each is in.
class Cells {
 public:
  Cells(const Tensor& queries, const Tensor& query_batch, const Tensor& points, const Tensor& point_batch, double radius)
      : queries(read<float>(queries, 2, "queries")), batch(read<int64_t>(query_batch, 1, "query_batch")),
        queried(queries.size(0)), count(points.size(0)), radius(static_cast<float>(radius)), launch(queries) {
    const float* from = read<float>(points, 2, "points");
    const int64_t* scene = read<int64_t>(point_batch, 1, "point_batch");
    STD_TORCH_CHECK(queries.size(1) == 3 && query_batch.size(0) == queried, "queries must be (Q, 3), query_batch (Q,)");
    STD_TORCH_CHECK(points.size(1) == 3 && point_batch.size(0) == count, "points must be (P, 3), point_batch (P,)");
    STD_TORCH_CHECK(count < INT32_MAX, "too many points");
    STD_TORCH_CHECK(radius > 0, "radius must be positive");
    same_device(queries, {&query_batch, &points, &point_batch});
    const Tensor keys = make<int64_t>(points, {count});
    launch.check(pcssl_cuda_cell_keys(from, scene, count, this->radius, write<int64_t>(keys), launch.stream()));
    Tensor order;
    std::tie(sorted_, order) = sort(keys);
    packed_ = make<float>(points, {count, 4});
    launch.check(pcssl_cuda_pack_points(from, scene, write<int64_t>(order), count, write<float>(packed_),
                                        launch.stream()));
  }

  // kernel(queries, ..., radius, more..., stream)
  template <typename Kernel, typename... More>
  void run(Kernel kernel, More... more) const {
    launch.check(kernel(queries, batch, queried, write<int64_t>(sorted_), write<float>(packed_), count, radius,
                        more..., launch.stream()));
  }

  const float* queries;
  const int64_t* batch;
  const int64_t queried, count;
  const float radius;
  const Launch launch;

 private:
  Tensor sorted_, packed_;
};

std::tuple<Tensor, Tensor> nearest(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch, double radius) {
  const Cells cells(queries, query_batch, points, point_batch, radius);
  Tensor index = make<int64_t>(queries, {cells.queried}), distance = make<float>(queries, {cells.queried});
  cells.run(pcssl_cuda_nearest, write<int64_t>(index), write<float>(distance));
  return {index, distance};
}

// k: at most so many for a query, the nearest; 0: all. Sizes are counted first, which waits for the GPU.
std::tuple<Tensor, Tensor> radius_neighbors(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch,
                                            double radius, int64_t k) {
  STD_TORCH_CHECK(k >= 0, "k must not be negative");
  const Cells cells(queries, query_batch, points, point_batch, radius);
  Tensor counts = torch::stable::new_zeros(queries, {cells.queried + 1}, ScalarType::Long);
  Tensor kept = torch::stable::new_zeros(queries, {cells.queried + 1}, ScalarType::Long);
  cells.run(pcssl_cuda_count_near, k > 0 ? k : INT64_MAX, write<int64_t>(counts) + 1, write<int64_t>(kept) + 1);
  const Tensor starts = cumsum(counts);
  Tensor offsets = cumsum(kept);
  const Tensor entries = make<int64_t>(queries, {last(starts)});
  Tensor index = make<int64_t>(queries, {last(offsets)});
  cells.run(pcssl_cuda_list_near, write<int64_t>(starts), write<int64_t>(entries));
  cells.launch.check(pcssl_cuda_rank_near(write<int64_t>(entries), write<int64_t>(starts), write<int64_t>(offsets),
                                          cells.queried, write<int64_t>(index), cells.launch.stream()));
  return {offsets, index};
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) {
  m.impl("nearest", TORCH_BOX(&nearest));
  m.impl("radius_neighbors", TORCH_BOX(&radius_neighbors));
}

}  // namespace pcssl::cuda
