// Which rank a process is, from what torchrun, mpirun and srun put in its environment.
#include "core/ranks_place.h"

#include <map>

#include "tests/catch.h"

using namespace weft;

namespace {

using Variables = std::map<std::string, std::string>;

Place place_of(const Variables& variables) {
  return place_from([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

}  // namespace

TEST_CASE("ranks_place: a process that nobody started as a rank is alone") {
  CHECK(place_of({}).size == 1);
  CHECK(place_of({{"RANK", "3"}}).size == 1);
  CHECK(place_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).size == 1);
}

TEST_CASE("ranks_place: each starter's variables are read") {
  const Variables torchrun = {{"RANK", "3"},
                              {"WORLD_SIZE", "4"},
                              {"LOCAL_RANK", "1"},
                              {"MASTER_ADDR", "node1"},
                              {"MASTER_PORT", "29500"}};
  const Place t = place_of(torchrun);
  CHECK((t.rank == 3 && t.size == 4 && t.local == 1));
  CHECK((t.address == "node1" && t.port == 29500));
  Variables agent = torchrun;
  agent["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  CHECK(place_of(agent).port == 29501);  // torchrun itself is at 29500

  const Variables open_mpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                              {"OMPI_COMM_WORLD_SIZE", "2"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                              {"PMIX_NAMESPACE", "job"}};
  const Place o = place_of(open_mpi);
  CHECK((o.rank == 1 && o.size == 2 && o.local == 1 && o.address == "127.0.0.1"));
  Variables other_job = open_mpi;
  other_job["PMIX_NAMESPACE"] = "another";
  CHECK(place_of(other_job).port != o.port);

  const Place m = place_of({{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}});
  CHECK((m.rank == 2 && m.size == 3 && m.local == -1));

  const Place s = place_of({{"SLURM_PROCID", "5"},
                            {"SLURM_NTASKS", "8"},
                            {"SLURM_LOCALID", "1"},
                            {"SLURM_JOB_NODELIST", "gpu[07-09,12]"}});
  CHECK((s.rank == 5 && s.size == 8 && s.local == 1 && s.address == "gpu07"));
}

TEST_CASE("ranks_place: the first host of Slurm's list is rank 0's") {
  CHECK(first_host("one") == "one");
  CHECK(first_host("one,two") == "one");
  CHECK(first_host("n[3,5-7]") == "n3");
  CHECK(first_host("n[01-04],other[2-3]") == "n01");
  CHECK(first_host("rack[1-2]-ib") == "rack1-ib");
  CHECK(first_host("a1,b[2-3]") == "a1");
}

TEST_CASE("ranks_place: a value that cannot be is refused by its name") {
  CHECK_THROWS_WITH(place_of({{"RANK", "4"}, {"WORLD_SIZE", "4"}}),
                    ContainsSubstring("RANK = \"4\"") && ContainsSubstring("0 to 3"));
  CHECK_THROWS_WITH(place_of({{"RANK", "0"}, {"WORLD_SIZE", "two"}}),
                    ContainsSubstring("WORLD_SIZE = \"two\""));
  CHECK_THROWS_WITH(place_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "99999"}}),
                    ContainsSubstring("MASTER_PORT"));
  CHECK_THROWS_WITH(place_of({{"OMPI_COMM_WORLD_RANK", "0"},
                              {"OMPI_COMM_WORLD_SIZE", "4"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
                    ContainsSubstring("MASTER_ADDR"));
}
