/* SPDX-License-Identifier: Apache-2.0
 *
 * See locked.h. Called by the back ends.
 */
#include "iommu/locked.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

bool may_lock_memory(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    return data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK);
}

int check_locked_limit(uint64_t needed, struct error *error)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return error_set_errno(error, errno, "cannot ask for the limit on locked memory");
    if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= needed)
        return 0;
    error_set(error, ENOMEM,
              "the limit on locked memory is %" PRIu64
              " KiB, taking over the mappings needs %" PRIu64 " KiB",
              (uint64_t)limit.rlim_cur / KIB, needed / KIB);
    return error_add_remedy(error, "raise it for process %d (prlimit --memlock, ulimit -l)",
                            (int)getpid());
}
