#include "core/ranks_place.h"

#include <unistd.h>

#include <array>
#include <charconv>
#include <optional>
#include <utility>

#include "core/hash.h"

namespace weft {
namespace {

// The variables of a starter.
struct Starter {
  const char *rank, *size, *local;
};
constexpr std::array<Starter, 5> kStarters = {{
    {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
}};

class Reader {
 public:
  explicit Reader(const Environment& environment) : environment_(environment) {}

  std::string text(const char* name) const {
    const char* const value = environment_(name);
    return value ? value : "";
  }
  std::optional<int> number(const char* name, int least, int most) const {
    const std::string value = text(name);
    if (value.empty()) return std::nullopt;
    int n = 0;
    const auto read = std::from_chars(value.data(), value.data() + value.size(), n);
    require(read.ec == std::errc() && read.ptr == value.data() + value.size() && n >= least &&
                n <= most,
            "the environment says ", name, " = \"", value, "\", expected a number from ", least,
            " to ", most);
    return n;
  }

 private:
  const Environment& environment_;
};

std::string address_of(const Reader& env, const Place& place) {
  if (const std::string given = env.text("MASTER_ADDR"); !given.empty()) return given;
  if (place.source.rfind("SLURM", 0) == 0)
    if (const std::string list = env.text("SLURM_JOB_NODELIST"); !list.empty())
      return first_host(list);
  const auto here = env.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, 1 << 20);
  require(!here || *here == place.size, "Open MPI started ", place.size,
          " ranks on several hosts: MASTER_ADDR must name the host of rank 0 (mpirun -x "
          "MASTER_ADDR=HOST)");
  return "127.0.0.1";
}

// A port that the processes of one job agree on, where none is given.
int port_of(const Reader& env) {
  if (const auto given = env.number("MASTER_PORT", 1, 65534))
    // torchrun itself listens at that port.
    return *given + (env.text("TORCHELASTIC_USE_AGENT_STORE") == "True" ? 1 : 0);
  std::string job;
  for (const char* name :
       {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID", "SLURM_STEP_ID"})
    job += env.text(name) + "/";
  return 20000 + static_cast<int>(hash64(concat(job, ::getuid())) % 12000);
}

}  // namespace

std::string first_host(const std::string& list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const size_t end = list.find_first_of("-,]", bracket);
  const size_t behind = list.find(']', bracket);
  const std::string rest =
      behind == std::string::npos
          ? ""
          : list.substr(behind + 1, list.find(',', behind) - std::min(list.size(), behind + 1));
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) + rest;
}

Place place_from(const Environment& environment) {
  const Reader env(environment);
  Place place;
  place.local = -1;
  place.patience = env.number("WEFT_RANKS_WAIT", 1, 1 << 20).value_or(place.patience);
  for (const Starter& s : kStarters) {
    if (env.text(s.rank).empty() || env.text(s.size).empty()) continue;
    const int size = *env.number(s.size, 1, 1 << 20);
    place.rank = *env.number(s.rank, 0, size - 1);
    place.size = size;
    place.local = env.number(s.local, 0, 1 << 20).value_or(-1);
    place.source = concat(s.rank, " and ", s.size);
    break;
  }
  if (place.size == 1) return place;
  place.address = address_of(env, place);
  place.port = port_of(env);
  if (place.rank == 0) place.listener = env.number("WEFT_LISTENER", 3, 1 << 20).value_or(-1);
  return place;
}

}  // namespace weft
