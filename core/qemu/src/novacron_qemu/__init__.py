"""What drivers of QEMU-based machines share; see the modules.

It knows the protocol's batches and the native page kernels, and neither the kernel nor any driver.
"""
