// Threads of our own, for teams that cannot share torch's.
#pragma once

namespace lstmkern {
namespace cpu {

// Runs body as run_team does, on the calling thread and threads that wait for its next team. They end with the calling
// thread. If they cannot be started, body runs on the calling thread alone. Returns the size of the team.
int run_pool(int threads, void (*body)(void* arg, int rank, int size), void* arg);

}  // namespace cpu
}  // namespace lstmkern
