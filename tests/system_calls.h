// What the kernel can do to a program: kill it at a chosen system call, or refuse a call. Each runs
// f() in a child process.
#pragma once

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <functional>
#include <set>
#include <vector>

namespace weft::tests {

// The exit status of f() in a child; 99 where it throws, 128 + n where signal n ended it.
inline int in_child(const std::function<int()>& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 99;
    try {
      status = f();
    } catch (...) {
    }
    ::_exit(status);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Calls that change names in a folder.
inline const std::set<uint64_t> kNameCalls = {
#ifdef SYS_unlink
    SYS_unlink,   SYS_rename,   SYS_link,      SYS_rmdir,
#endif
    SYS_unlinkat, SYS_renameat, SYS_renameat2, SYS_linkat};

// Runs f() in a child that is killed right before the nth (from 0) of these system calls. Returns
// true where it came so far, false where it ended before.
inline bool killed_before(const std::function<void()>& f, int nth,
                          const std::set<uint64_t>& calls = kNameCalls) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    f();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD);
  for (bool first = true; WIFSTOPPED(status); first = false) {
    if (!first && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      struct __ptrace_syscall_info info {};
      ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info);
      if (info.op == PTRACE_SYSCALL_INFO_ENTRY && calls.count(info.entry.nr) && nth-- == 0) {
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        return true;
      }
    }
    ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
    ::waitpid(child, &status, 0);
  }
  return false;
}

// From here on this process and its children get `error` from a system call; where `second` is not
// negative, only if that is its second argument. Returns false where the kernel has no such
// filters.
inline bool refuse_call(int call, int error, int second = -1) {
  std::vector<sock_filter> program{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                   BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call),
                                            0, static_cast<uint8_t>(second < 0 ? 1 : 3))};
  if (second >= 0) {
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[1])));
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(second), 0, 1));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)));
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

}  // namespace weft::tests
