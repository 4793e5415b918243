#include "tests/support/program.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace tessera::testing {
namespace {

struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe(int read, int write) : read_end(read), write_end(write) {}
  explicit Pipe(bool terminal = false) {
    if (terminal) {
      read_end = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
      if (read_end < 0 || ::grantpt(read_end) != 0 || ::unlockpt(read_end) != 0) throw std::runtime_error("no terminal");
      write_end = ::open(::ptsname(read_end), O_WRONLY | O_NOCTTY | O_CLOEXEC);
      return;
    }
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
    read_end = ends[0];
    write_end = ends[1];
  }
};

[[noreturn]] void exec_child(const std::vector<std::string>& command, const ProgramOptions& options, int in, int out,
                             int err) {
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  if (!options.directory.empty() && ::chdir(options.directory.c_str()) != 0) ::_exit(127);
  if (options.max_file_bytes >= 0) {
    const rlimit limit = {static_cast<rlim_t>(options.max_file_bytes), static_cast<rlim_t>(options.max_file_bytes)};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);  // the write fails instead, as on a full disk
  }
  if (options.obey_permissions && ::geteuid() == 0) {
    ::prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
    ::prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0);
  }
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

void write_all(int fd, const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
}

/// Sends a program the interrupts that were asked for.
class Interrupter {
 public:
  Interrupter(pid_t child, const std::vector<std::string>& after) : child_(child), after_(after) {}

  /// Looks at the output so far. True when the last interrupt has been sent.
  bool look_at(const std::string& out) {
    while (next_ < after_.size()) {
      const size_t found = out.find(after_[next_], seen_);
      if (found >= out.size()) return false;
      ::kill(child_, SIGINT);
      seen_ = found + std::max<size_t>(after_[next_].size(), 1);
      ++next_;
    }
    return true;
  }

 private:
  pid_t child_;
  const std::vector<std::string>& after_;
  size_t next_ = 0, seen_ = 0;
};

// An unnamed file, so that a child that reads nothing cannot block us; a pipe that stays open where interrupts are to come.
Pipe make_input(const ProgramOptions& options) {
  if (!options.interrupt_after.empty()) {
    Pipe pipe;
    write_all(pipe.write_end, options.input);  // short texts: a pipe holds them
    return pipe;
  }
  std::FILE* file = std::tmpfile();
  if (!file) throw std::runtime_error("tmpfile failed");
  write_all(::fileno(file), options.input);
  ::lseek(::fileno(file), 0, SEEK_SET);
  Pipe pipe{::dup(::fileno(file)), -1};
  std::fclose(file);
  return pipe;
}

}  // namespace

ProgramResult run_program(const std::vector<std::string>& command, const ProgramOptions& options) {
  Pipe input = make_input(options), out, err(options.terminal);
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) exec_child(command, options, input.read_end, out.write_end, err.write_end);
  ::close(out.write_end);
  ::close(err.write_end);
  ::close(input.read_end);

  ProgramResult result;
  Interrupter interrupter(child, options.interrupt_after);
  pollfd polls[2] = {{out.read_end, POLLIN, 0}, {err.read_end, POLLIN, 0}};
  while (polls[0].fd >= 0 || polls[1].fd >= 0) {
    ::poll(polls, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (polls[i].fd < 0 || !(polls[i].revents & (POLLIN | POLLHUP | POLLERR))) continue;
      char chunk[4096];
      const ssize_t n = ::read(polls[i].fd, chunk, sizeof chunk);
      if (n > 0) {
        (i == 0 ? result.out : result.err).append(chunk, static_cast<size_t>(n));
      } else {
        ::close(polls[i].fd);
        polls[i].fd = -1;
      }
    }
    if (interrupter.look_at(result.out) && input.write_end >= 0) {
      ::close(input.write_end);
      input.write_end = -1;
    }
  }
  if (input.write_end >= 0) ::close(input.write_end);
  int status = 0;
  ::waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

size_t line_count(const std::string& text) { return static_cast<size_t>(std::count(text.begin(), text.end(), '\n')); }

}  // namespace tessera::testing
