"""The report of a plan for a machine: one HTML file that loads nothing, and every figure on its own.

::

    data.py      MachinePlan -> PlanReport: everything that is shown, as plain data (also its JSON)
    figures.py   PlanReport -> figures, by matplotlib
    page.py      figures and tables -> one HTML file
"""
