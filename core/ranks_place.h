// Which rank this process is, as the program that started it says in the environment:
//   weft itself, torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
//   mpirun of Open MPI      OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK
//   mpirun of MPICH         PMI_RANK, PMI_SIZE, MPI_LOCALRANKID
//   srun                    SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_JOB_NODELIST
// MASTER_ADDR and MASTER_PORT say where rank 0 is under all of them. WEFT_RANKS_WAIT is how many
// seconds the ranks wait for each other at the start.
#pragma once

#include <functional>
#include <string>

#include "core/ranks.h"

namespace weft {

using Environment = std::function<const char*(const char* name)>;  // as std::getenv

// One rank alone where nothing says otherwise; its `local` is -1 where nobody says it. Throws Error
// that names a variable with a value that cannot be.
Place place_from(const Environment& environment);

// "node[07-09,12],other" is "node07".
std::string first_host(const std::string& slurm_list);

}  // namespace weft
