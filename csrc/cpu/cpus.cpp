// CPUs from the affinity mask, cgroup quotas (versions 1 and 2) and LSTMKERN_NUM_THREADS. See proc_pid_cgroup and
// proc_pid_mountinfo in section 5 of the Linux manual, and "CPU Interface Files" in the kernel's admin-guide/cgroup-v2.
#include "cpus.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lstmkern {
namespace cpu {
namespace {

// A hierarchy of cgroups that has the CPU controller: where it is mounted, and this process's group in it.
struct Hierarchy {
  std::string mount, group;
  bool v2;
};

bool in_list(const std::string& list, const std::string& word) {
  return ("," + list + ",").find("," + word + ",") != std::string::npos;
}

// Undoes mountinfo's escapes: \040 is a space.
std::string unescaped(const std::string& s) {
  std::string out;
  for (size_t i = 0; i < s.size(); ++i) {
    auto octal = [&](size_t k) { return i + k < s.size() && s[i + k] >= '0' && s[i + k] <= '7'; };
    if (s[i] == '\\' && octal(1) && octal(2) && octal(3)) {
      out += static_cast<char>((s[i + 1] - '0') * 64 + (s[i + 2] - '0') * 8 + (s[i + 3] - '0'));
      i += 3;
    } else {
      out += s[i];
    }
  }
  return out;
}

// This process's group, from lines "number:controllers:group"; version 2 has number 0 and no controllers. Empty: none.
std::string group_of(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? line.compare(0, first, "0") == 0 && controllers.empty() : in_list(controllers, "cpu"))
      return line.substr(second + 1);
  }
  return "";
}

// The part of `group` below `top`, the group at which a hierarchy is mounted: "" or "/..." . A container often sees its
// own group as "/", or the name that its group has outside. So "" is also the answer for a group that is not below.
std::string below(const std::string& group, const std::string& top) {
  if (group.find("/..") != std::string::npos) return "";
  if (top == "/") return group == "/" ? "" : group;
  const bool inside =
      group.compare(0, top.size(), top) == 0 && (group.size() == top.size() || group[top.size()] == '/');
  return inside ? group.substr(top.size()) : "";
}

std::vector<Hierarchy> hierarchies(const std::string& root) {
  std::vector<Hierarchy> found;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // id parent device top mount options [tags] - type source options
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), after(line.substr(dash + 3));
    std::string id, parent, device, top, mount, type, source, options;
    if (!(before >> id >> parent >> device >> top >> mount) || !(after >> type >> source >> options)) continue;
    const bool v2 = type == "cgroup2";
    if (!v2 && !(type == "cgroup" && in_list(options, "cpu"))) continue;
    const std::string group = group_of(root, v2);
    if (!group.empty()) found.push_back({root + unescaped(mount), below(group, unescaped(top)), v2});
  }
  return found;
}

// The CPUs of a folder's quota, infinite without one.
double quota_in(const std::string& folder, bool v2) {
  std::string quota, period;
  if (v2) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  const double used = std::strtod(quota.c_str(), nullptr), of = std::strtod(period.c_str(), nullptr);  // "max": 0
  return used > 0 && of > 0 ? used / of : INFINITY;
}

int parse(const char* variable) {
  char* end;
  const long threads = std::strtol(variable, &end, 10);
  if (*variable < '0' || *variable > '9' || *end || threads < 1 || threads > 65536)
    throw std::invalid_argument(std::string("LSTMKERN_NUM_THREADS=") + variable +
                                ": set it to the most threads that a layer may use on the CPU, 1 to 65536, or to "
                                "nothing for the CPUs that this process may use");
  return static_cast<int>(threads);
}

}  // namespace

Cpus read_cpus(const std::string& root, int mask, const char* variable) {
  Cpus cpus{mask, mask, mask, "affinity mask"};
  for (const Hierarchy& h : hierarchies(root))
    // The quota of each ancestor holds too.
    for (std::string group = h.group;; group.erase(group.rfind('/'))) {
      const std::string folder = h.mount + group;
      const double quota = quota_in(folder, h.v2);
      if (quota < cpus.found) {
        std::ostringstream from;
        from << "cgroup quota of " << quota << " CPUs in " << folder.substr(root.size());
        cpus.found = std::max(1, static_cast<int>(std::ceil(quota)));
        cpus.from = from.str();
      }
      if (group.find('/') == std::string::npos) break;
    }
  cpus.threads = cpus.found;
  if (variable && *variable) {
    cpus.threads = parse(variable);
    cpus.from += std::string("; LSTMKERN_NUM_THREADS=") + variable;
  }
  return cpus;
}

int cpus_in_affinity_mask() {
#if defined(__linux__)
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t* set = CPU_ALLOC(most);
    if (!set) break;
    const size_t size = CPU_ALLOC_SIZE(most);
    const int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count) return count;
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

const Cpus& cpus() {
  static const Cpus read = read_cpus("", cpus_in_affinity_mask(), std::getenv("LSTMKERN_NUM_THREADS"));
  return read;
}

}  // namespace cpu
}  // namespace lstmkern
