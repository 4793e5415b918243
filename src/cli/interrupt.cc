#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace tessera::cli {
namespace {

std::atomic<int> g_interrupts{0};

void on_interrupt(int) {
  if (g_interrupts.fetch_add(1) >= 1) {
    static constexpr char kNewLine[] = "\n";
    (void)!::write(STDERR_FILENO, kNewLine, 1);
    ::_exit(130);
  }
}

}  // namespace

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

int interrupts() { return g_interrupts.load(); }
void reset_interrupts() { g_interrupts.store(0); }

}  // namespace tessera::cli
