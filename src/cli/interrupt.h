#pragma once

namespace tessera::cli {

/// Ctrl-C: the first interrupt asks the running answer to end, the second ends the program at once (exit code 130).
/// Install once a process.
void install_interrupt_handler();

/// How many interrupts came since the last reset.
int interrupts();
void reset_interrupts();

}  // namespace tessera::cli
