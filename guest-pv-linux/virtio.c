// SPDX-License-Identifier: GPL-2.0-only
/*
 * Facility dev: virtio devices without a bus. The table and the calls are in
 * dev.rs; here is what the kernel's virtio drivers want of a transport.
 *
 * A driver reads features and configuration from memory. Nothing crosses until
 * it says that it is ready: one call then has all that the device must know.
 * From there on a doorbell is an OUT, which does not leave the host's kernel,
 * and the way back is the interrupt of all events.
 *
 * All of it is C: struct virtio_config_ops has no Rust abstraction.
 */

#include <linux/device.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/workqueue.h>

#include <asm/irq_vectors.h>
#include <asm/smp.h>

#include "paravane.h"

struct paravane_device {
	struct virtio_device vdev;
	struct paravane_dev about;
	u32 number;
	/* Of the configuration that the driver has been told of. */
	u32 generation;
	u8 status;
	/* Its queues are looked at when an event comes. */
	bool started;
	struct virtqueue *vqs[PARAVANE_DEV_QUEUES];
	struct work_struct broken;
	/* What the host reads when the device starts. */
	struct paravane_dev_start start;
};

static struct paravane_device *paravane_devices[PARAVANE_DEVS];

static struct paravane_device *to_paravane(struct virtio_device *vdev)
{
	return container_of(vdev, struct paravane_device, vdev);
}

static void paravane_vd_get(struct virtio_device *vdev, unsigned int offset,
			    void *buf, unsigned int len)
{
	paravane_dev_config(to_paravane(vdev)->number, offset, buf, len);
}

/* No device here has anything to be written. */
static void paravane_vd_set(struct virtio_device *vdev, unsigned int offset,
			    const void *buf, unsigned int len)
{
	dev_warn_once(&vdev->dev, "the configuration cannot be written\n");
}

static u32 paravane_vd_generation(struct virtio_device *vdev)
{
	return paravane_dev_generation(to_paravane(vdev)->number);
}

static u8 paravane_vd_get_status(struct virtio_device *vdev)
{
	struct paravane_device *dev = to_paravane(vdev);
	bool broken = paravane_dev_needs_reset(dev->number);

	return dev->status | (broken ? VIRTIO_CONFIG_S_NEEDS_RESET : 0);
}

static void paravane_vd_set_status(struct virtio_device *vdev, u8 status)
{
	struct paravane_device *dev = to_paravane(vdev);
	u8 news = status & ~dev->status;

	dev->status = status;
	if (!(news & VIRTIO_CONFIG_S_DRIVER_OK))
		return;
	/* Before the call: its first interrupt can be faster than we are. */
	WRITE_ONCE(dev->started, true);
	if (!paravane_dev_start(dev->number, virt_to_phys(&dev->start))) {
		WRITE_ONCE(dev->started, false);
		dev->status |= VIRTIO_CONFIG_S_FAILED;
		virtio_break_device(vdev);
	}
}

static void paravane_vd_reset(struct virtio_device *vdev)
{
	struct paravane_device *dev = to_paravane(vdev);

	dev->status = 0;
	if (!dev->started)
		return;
	paravane_dev_stop(dev->number);
	WRITE_ONCE(dev->started, false);
	/* Events that are being looked at on other processors. */
	synchronize_rcu();
}

/* Of the features that are a transport's, those that this one has. */
#define PARAVANE_VD_FEATURES	(BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) | \
				 BIT_ULL(VIRTIO_RING_F_EVENT_IDX) | \
				 BIT_ULL(VIRTIO_F_VERSION_1))

static u64 paravane_vd_get_features(struct virtio_device *vdev)
{
	u64 others = GENMASK_ULL(VIRTIO_TRANSPORT_F_END - 1, VIRTIO_TRANSPORT_F_START) &
		     ~PARAVANE_VD_FEATURES;

	return to_paravane(vdev)->about.features & ~others;
}

static int paravane_vd_finalize_features(struct virtio_device *vdev)
{
	vring_transport_features(vdev);
	if (!__virtio_test_bit(vdev, VIRTIO_F_VERSION_1)) {
		dev_err(&vdev->dev, "the driver is older than virtio 1\n");
		return -EINVAL;
	}
	to_paravane(vdev)->start.features = vdev->features;
	return 0;
}

static const char *paravane_vd_bus_name(struct virtio_device *vdev)
{
	return "paravane";
}

static bool paravane_vd_notify(struct virtqueue *vq)
{
	paravane_dev_ring(to_paravane(vq->vdev)->number, vq->index);
	return true;
}

static void paravane_vd_del_vqs(struct virtio_device *vdev)
{
	struct paravane_device *dev = to_paravane(vdev);
	struct virtqueue *vq, *next;

	memset(dev->vqs, 0, sizeof(dev->vqs));
	memset(dev->start.queues, 0, sizeof(dev->start.queues));
	list_for_each_entry_safe(vq, next, &vdev->vqs, list)
		vring_del_virtqueue(vq);
}

static struct virtqueue *paravane_vd_setup_vq(struct paravane_device *dev, unsigned int index,
					      const struct virtqueue_info *info)
{
	struct paravane_dev_queue *queue;
	struct virtqueue *vq;

	if (index >= dev->about.queues)
		return ERR_PTR(-ENOENT);
	vq = vring_create_virtqueue(index, dev->about.queue_max, SMP_CACHE_BYTES, &dev->vdev, true,
				    true, info->ctx, paravane_vd_notify, info->callback,
				    info->name);
	if (!vq)
		return ERR_PTR(-ENOMEM);
	vq->num_max = dev->about.queue_max;
	queue = &dev->start.queues[index];
	queue->descriptors = virtqueue_get_desc_addr(vq);
	queue->available = virtqueue_get_avail_addr(vq);
	queue->used = virtqueue_get_used_addr(vq);
	queue->size = virtqueue_get_vring_size(vq);
	dev->vqs[index] = vq;
	return vq;
}

static int paravane_vd_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
				struct virtqueue *vqs[],
				struct virtqueue_info vqs_info[],
				struct irq_affinity *desc)
{
	/* The host wants all queues; a driver leaves out those it has no processors for. */
	static const struct virtqueue_info unused = { .name = "unused" };
	struct paravane_device *dev = to_paravane(vdev);
	unsigned int i, index = 0;
	struct virtqueue *vq;

	for (i = 0; i < nvqs; i++) {
		vqs[i] = NULL;
		if (!vqs_info[i].name)
			continue;
		vq = paravane_vd_setup_vq(dev, index++, &vqs_info[i]);
		if (IS_ERR(vq))
			goto error;
		vqs[i] = vq;
	}
	while (index < dev->about.queues) {
		vq = paravane_vd_setup_vq(dev, index++, &unused);
		if (IS_ERR(vq))
			goto error;
	}
	return 0;

error:
	paravane_vd_del_vqs(vdev);
	return PTR_ERR(vq);
}

static const struct virtio_config_ops paravane_vd_ops = {
	.get			= paravane_vd_get,
	.set			= paravane_vd_set,
	.generation		= paravane_vd_generation,
	.get_status		= paravane_vd_get_status,
	.set_status		= paravane_vd_set_status,
	.reset			= paravane_vd_reset,
	.find_vqs		= paravane_vd_find_vqs,
	.del_vqs		= paravane_vd_del_vqs,
	.get_features		= paravane_vd_get_features,
	.finalize_features	= paravane_vd_finalize_features,
	.bus_name		= paravane_vd_bus_name,
};

static void paravane_device_is_broken(struct work_struct *work)
{
	struct paravane_device *dev = container_of(work, struct paravane_device, broken);

	dev_err(&dev->vdev.dev, "the host says that the driver has broken the rules\n");
	virtio_break_device(&dev->vdev);
}

static void paravane_config_event(struct paravane_device *dev)
{
	u32 generation = paravane_dev_generation(dev->number);

	if (likely(generation == dev->generation))
		return;
	dev->generation = generation;
	virtio_config_changed(&dev->vdev);
}

/* From the event's interrupt: which of the queues has something is in memory. */
void paravane_virtio_event(void)
{
	int i, j;

	for (i = 0; i < PARAVANE_DEVS; i++) {
		struct paravane_device *dev = READ_ONCE(paravane_devices[i]);

		if (!dev)
			return;
		if (!READ_ONCE(dev->started))
			continue;
		for (j = 0; j < PARAVANE_DEV_QUEUES && dev->vqs[j]; j++)
			vring_interrupt(0, dev->vqs[j]);
		paravane_config_event(dev);
		if (unlikely(paravane_dev_needs_reset(dev->number)))
			schedule_work(&dev->broken);
	}
}

static void paravane_vd_release(struct device *device)
{
	kfree(to_paravane(dev_to_virtio(device)));
}

static int __init paravane_add_device(struct device *parent, u32 number)
{
	struct paravane_device *dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	int error;

	if (!dev)
		return -ENOMEM;
	if (!paravane_dev_describe(number, &dev->about)) {
		kfree(dev);
		return -EINVAL;
	}
	dev->number = number;
	dev->generation = paravane_dev_generation(number);
	INIT_WORK(&dev->broken, paravane_device_is_broken);
	dev->start.vector = PARAVANE_EVENT_VECTOR;
	dev->start.apic_id = per_cpu(x86_cpu_to_apicid, 0);
	dev->vdev.id.device = dev->about.kind;
	dev->vdev.id.vendor = PARAVANE_DEV_VENDOR;
	dev->vdev.config = &paravane_vd_ops;
	dev->vdev.dev.parent = parent;
	dev->vdev.dev.release = paravane_vd_release;
	WRITE_ONCE(paravane_devices[number], dev);
	error = register_virtio_device(&dev->vdev);
	/* The event's interrupt may know it: it stays, and is never started. */
	if (error)
		dev_err(&dev->vdev.dev, "cannot be registered: %d\n", error);
	return error;
}

/* C because initcalls are section entries. */
static int __init paravane_virtio_initcall(void)
{
	u32 number, count = paravane_dev_count();
	struct device *parent;

	if (!count)
		return 0;
	parent = root_device_register("paravane");
	if (IS_ERR(parent))
		return PTR_ERR(parent);
	for (number = 0; number < count; number++) {
		if (paravane_add_device(parent, number))
			break;
	}
	return 0;
}
device_initcall(paravane_virtio_initcall);
