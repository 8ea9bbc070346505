/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of back ends: which there are, and which of them this baton was built with (meson's
 * options iommufd and vfio_container). In the place of one that was left out stands one that
 * refuses to make or to adopt an address space and says why, so that nothing else in iommu/ has to
 * ask. Called by space.c and, for "baton version", by main.c.
 */
#include <errno.h>

#include "base/util.h"
#include "iommu/ops.h"

static const struct {
    const char *name;
    const char *option;          /* of meson's */
    const char *instead;         /* of it, where the other back end is there */
    const struct iommu_ops *ops; /* NULL: left out, and then there is no such symbol either */
} backends[] = {
    [IOMMU_BACKEND_IOMMUFD] = {.name = "iommufd",
                               .option = "-Diommufd=enabled",
                               .instead = "leave -object iommufd and iommufd= out",
                               .ops = IOMMU_WITH_IOMMUFD ? &iommu_iommufd_ops : NULL},
    [IOMMU_BACKEND_TYPE1] = {.name = "legacy containers",
                             .option = "-Dvfio_container=enabled",
                             .instead = "give the device iommufd=",
                             .ops = IOMMU_WITH_TYPE1 ? &iommu_type1_ops : NULL},
};

/* --- one that was left out ------------------------------------------------------------------- */

static int refuse(const struct iommu *iommu, struct error *error)
{
    enum iommu_backend wanted = iommu->facts.backend;
    enum iommu_backend other =
        wanted == IOMMU_BACKEND_TYPE1 ? IOMMU_BACKEND_IOMMUFD : IOMMU_BACKEND_TYPE1;

    error_set(error, ENOTSUP, "this baton was built without %s", backends[wanted].name);
    if (backends[other].ops == NULL)
        return error_add_remedy(error, "build it with %s", backends[wanted].option);
    return error_add_remedy(error, "%s, or build it with %s", backends[wanted].instead,
                            backends[wanted].option);
}

static int refuse_to_create(struct iommu *iommu, struct error *error)
{
    return refuse(iommu, error);
}

/* Whose guest it is has no choice any more: the remedy is another build. */
static int refuse_to_adopt(struct iommu *iommu, struct fdset *fds, struct error *error)
{
    enum iommu_backend wanted = iommu->facts.backend;

    error_set(error, ENOTSUP, "this baton (" BATON_VERSION ") was built without %s",
              backends[wanted].name);
    return error_add_remedy(error, "the guest needs one built with %s", backends[wanted].option);
}

/* Nothing was made, but a descriptor may have been passed to it. */
static void drop(struct iommu *iommu, bool leave)
{
    close_fd(iommu->fd);
}

/* There is never an address space for the other operations to work on. */
static const struct iommu_ops left_out_ops = {
    .create = refuse_to_create,
    .adopt = refuse_to_adopt,
    .destroy = drop,
};

/* --- what others ask ------------------------------------------------------------------------- */

const struct iommu_ops *iommu_backend_ops(enum iommu_backend backend)
{
    return backends[backend].ops != NULL ? backends[backend].ops : &left_out_ops;
}

const char *iommu_built_in(enum iommu_backend backend)
{
    return backends[backend].ops != NULL ? backends[backend].name : NULL;
}
