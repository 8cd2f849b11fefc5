/* V4L2 cameras for tests, preloaded into a process: ordinary files whose path begins with FAKE_V4L2 answer a webcam's ioctls.
 *
 * It gives MJPG of FAKE_SIZE (64x48) whatever it is asked for, frame after frame from FAKE_FRAMES/0.jpg, 1.jpg, … and from
 * the beginning again; until the file is deleted, then ENODEV. FAKE_BUSY makes it refuse to stream, as a camera in use does.
 * The buffers are parts of the file itself, so that mmap and select need no help.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH (1 << 18)
#define MOST 16

static int queue[MOST], waiting, shown;

/* 0: another file; 1: a camera; 2: a camera that was pulled out. */
static int is_camera(int fd) {
    const char *path = getenv("FAKE_V4L2");
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (!path || length < 0) return 0;
    target[length] = 0;
    if (strncmp(target, path, strlen(path))) return 0;
    return strstr(target, " (deleted)") ? 2 : 1;
}

static int fail(int number) {
    errno = number;
    return -1;
}

static void describe(struct v4l2_pix_format *pix) {
    unsigned width = 64, height = 48;
    if (getenv("FAKE_SIZE")) sscanf(getenv("FAKE_SIZE"), "%ux%u", &width, &height);
    memset(pix, 0, sizeof *pix);
    pix->width = width;
    pix->height = height;
    pix->pixelformat = V4L2_PIX_FMT_MJPEG;
    pix->field = V4L2_FIELD_NONE;
    pix->sizeimage = LENGTH;
}

static int next_frame(int fd, struct v4l2_buffer *buffer) {
    char path[4096], data[LENGTH];
    if (is_camera(fd) == 2) return fail(ENODEV);
    usleep(20000);
    if (!waiting) return fail(EAGAIN);
    snprintf(path, sizeof path, "%s/%d.jpg", getenv("FAKE_FRAMES"), shown);
    int frame = open(path, O_RDONLY);
    if (frame < 0) {
        snprintf(path, sizeof path, "%s/%d.jpg", getenv("FAKE_FRAMES"), shown = 0);
        frame = open(path, O_RDONLY);
    }
    ssize_t length = read(frame, data, sizeof data);
    close(frame);
    shown++;
    buffer->index = queue[0];
    memmove(queue, queue + 1, --waiting * sizeof *queue);
    if (pwrite(fd, data, length, (off_t)buffer->index * LENGTH) != length) return fail(EIO);
    buffer->bytesused = length;
    buffer->length = LENGTH;
    buffer->m.offset = buffer->index * LENGTH;
    return 0;
}

int ioctl(int fd, unsigned long request, ...) {
    static int (*real)(int, unsigned long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "ioctl");
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!is_camera(fd)) return real(fd, request, argument);
    switch ((unsigned)request) {
        case VIDIOC_QUERYCAP: {
            struct v4l2_capability *capability = argument;
            memset(capability, 0, sizeof *capability);
            strcpy((char *)capability->driver, "fake");
            capability->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
            return 0;
        }
        case VIDIOC_ENUMINPUT:
            if (((struct v4l2_input *)argument)->index) return fail(EINVAL);
            return 0;
        case VIDIOC_G_INPUT:
            *(int *)argument = 0;
            return 0;
        case VIDIOC_S_INPUT:
        case VIDIOC_STREAMOFF:
            waiting = 0;
            return 0;
        case VIDIOC_G_FMT:
        case VIDIOC_S_FMT:
        case VIDIOC_TRY_FMT:
            describe(&((struct v4l2_format *)argument)->fmt.pix);
            return 0;
        case VIDIOC_G_PARM:
        case VIDIOC_S_PARM: {
            struct v4l2_streamparm *parameters = argument;
            parameters->parm.capture.capability = V4L2_CAP_TIMEPERFRAME;
            parameters->parm.capture.timeperframe.numerator = 1;
            parameters->parm.capture.timeperframe.denominator = 50;
            return 0;
        }
        case VIDIOC_REQBUFS: {
            struct v4l2_requestbuffers *wanted = argument;
            if (getenv("FAKE_BUSY")) return fail(EBUSY);
            wanted->count = wanted->count > MOST ? MOST : wanted->count;
            return ftruncate(fd, (off_t)wanted->count * LENGTH);
        }
        case VIDIOC_QUERYBUF: {
            struct v4l2_buffer *buffer = argument;
            buffer->length = LENGTH;
            buffer->m.offset = buffer->index * LENGTH;
            return 0;
        }
        case VIDIOC_QBUF:
            if (waiting < MOST) queue[waiting++] = ((struct v4l2_buffer *)argument)->index;
            return 0;
        case VIDIOC_DQBUF:
            return next_frame(fd, argument);
        case VIDIOC_STREAMON:
            return 0;
        default:
            return fail(EINVAL);
    }
}
