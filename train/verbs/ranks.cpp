#include "train/verbs/ranks.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/ranks_place.h"
#include "core/text.h"
#include "train/stop.h"

namespace weft::train {
namespace {

// How many ranks the flags ask for; 0 where they say nothing.
int asked_for(const RankArguments& a) {
  int gpus = 0;
  if (a.gpus == "all") {
    gpus = cuda_device_count();
    require(gpus > 0, "--gpus all: ", why_no_cuda());
  } else if (!a.gpus.empty()) {
    const char* const end = a.gpus.data() + a.gpus.size();
    const auto read = std::from_chars(a.gpus.data(), end, gpus);
    require(read.ec == std::errc() && read.ptr == end && gpus > 0, "--gpus ", a.gpus,
            ": expected how many GPUs, or all");
  }
  require(a.ranks >= 0 && a.ranks <= 4096, "--ranks ", a.ranks,
          ": expected a number of ranks from 1 to 4096");
  require(a.ranks == 0 || gpus == 0 || a.ranks == gpus, "--ranks ", a.ranks, " and --gpus ", a.gpus,
          ": a rank has one GPU; leave --ranks out");
  return gpus > 0 ? gpus : static_cast<int>(a.ranks);
}

// Lets this process see one GPU: the one with its number among those that it sees. Before the first
// call of CUDA.
void choose_gpu(int local) {
  const char* const seen = std::getenv("CUDA_VISIBLE_DEVICES");
  std::vector<std::string> list;
  if (seen)
    for (std::string rest = seen; !rest.empty();) {
      const size_t comma = rest.find(',');
      list.push_back(rest.substr(0, comma));
      rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
  if (list.size() == 1) return;  // a starter gave this rank its own
  const auto at = static_cast<size_t>(local);
  require(list.empty() || at < list.size(), "rank ", local,
          " of this host has no GPU: ", "CUDA_VISIBLE_DEVICES = ", seen ? seen : "", " names ",
          list.size());
  ::setenv("CUDA_VISIBLE_DEVICES", list.empty() ? concat(local).c_str() : list[at].c_str(), 1);
}

// The number among the ranks of its host, where the environment does not say it.
int local_of(const Ranks& ranks, const Place& place) {
  if (place.local >= 0) return place.local;
  const auto& hosts = ranks.hosts();
  const auto own = hosts.begin() + ranks.rank();
  return static_cast<int>(std::count(hosts.begin(), own, *own));
}

// What f() throws on one rank ends all of them; rank 0 tells it.
int together(Ranks& ranks, const std::function<int()>& f) {
  try {
    const int status = f();
    ranks.leave();
    return status;
  } catch (const RankFault& e) {
    ranks.tell_end(e.what(), e.status);
    if (!ranks.speaks_of(e)) return e.status;
    if (e.status == 2) throw Error(e.what());
    throw;
  } catch (const CheckFailed& e) {
    ranks.tell_end(e.what(), 1);
    if (ranks.first()) throw;
    return 1;
  } catch (const std::exception& e) {
    ranks.tell_end(e.what(), 2);
    if (ranks.first()) throw;
    return 2;
  }
}

}  // namespace

int on_ranks(const RankArguments& a, const std::string& device, const RankedVerb& verb) {
  const int asked = asked_for(a);
  Place place = place_from([](const char* name) { return std::getenv(name); });
  if (asked == 1) place = {};
  require(asked == 0 || place.size == 1 || place.size == asked, "--",
          a.gpus.empty() ? "ranks" : "gpus", " asks for ", asked, " ranks, but ", place.source,
          " say that there are ", place.size, "; leave the flag out");
  const bool gpus = !a.gpus.empty();
  std::string on = device;
  if (gpus || a.ranks > 0) {
    const std::string kind = gpus ? "cuda" : "cpu";
    require(device.empty() || device == kind, "--", gpus ? "gpus" : "ranks", " with --device ",
            device, ": ", gpus ? "each rank has a GPU" : "--ranks means the CPU, --gpus GPUs");
    on = kind;
  }
  if (asked > 1 && place.size == 1) {
    if (!gpus)
      if (const std::string why = why_no_cpu_ranks(); !why.empty()) fail("--ranks: ", why);
    require(!gpus || asked <= cuda_device_count(), "--gpus ", asked, ": this machine has ",
            cuda_device_count(), cuda_device_count() == 1 ? " GPU" : " GPUs", " that can be used",
            cuda_device_count() == 0 ? concat(": ", why_no_cuda()) : "");
    if (verb.check) verb.check(asked);
    return start_ranks(asked);
  }
  if (place.size == 1) {
    const auto alone = std::make_shared<Ranks>();
    // Both flags: the one rank exchanges with itself, by NCCL.
    if (gpus && a.ranks == 1) alone->use_itself();
    return verb.run(alone, on);
  }
  catch_stop_signals(place.rank == 0);
  const auto ranks = std::make_shared<Ranks>(place);
  if (!ranks->first()) (void)!std::freopen("/dev/null", "w", stdout);
  return together(*ranks, [&] {
    if constexpr (has_cuda)
      if (on != "cpu") choose_gpu(local_of(*ranks, place));
    return verb.run(ranks, on);
  });
}

}  // namespace weft::train
