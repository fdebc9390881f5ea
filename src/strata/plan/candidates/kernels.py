def adopt(function, kernel):
    pass
