"""``strata viz``: a compiled model as one HTML file that needs nothing but a browser.

::

    data     what the page shows, as plain JSON-able data      (graph, kernels and passes have a file each)
    page     data -> HTML
    static   style and scripts of the page, put into it as they are
"""
